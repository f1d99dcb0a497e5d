"""Reconstruction kernels, which every vendor names in its own way: soft or sharp."""

import re
from typing import Final

# Kernels by vendor: Siemens B30f, Br40d, I31s, Qr36 (number: sharpness); Canon FC01 to FC86, FC08-H; GE, Philips and
# United Imaging by name.
_SIEMENS: Final = re.compile(r"[BHIQDTUS][A-Z]{0,2}(\d{2})[A-Z]?(?:[\\/].*)?", re.IGNORECASE)
_CANON: Final = re.compile(r"FC(\d{2})(?:-.*)?", re.IGNORECASE)
_SOFT_NAMES: Final = {"DETAIL", "CHEST", "CHST", "BODY", "A", "B", "C", "SA", "SB", "SC"}
_SHARP_NAMES: Final = {"ULTRA", "D", "E", "L", "YA", "YB", "YC", "YD"}
_SOFT_PARTS: Final = ("SOFT", "STANDARD", "MEDIASTIN", "SMOOTH")
_SHARP_PARTS: Final = ("SHARP", "LUNG", "BONE", "EDGE")
_SHARP_SIEMENS: Final = 50
_SOFT_CANON: Final = 20


def kernel_kind(kernel: str | None) -> str | None:
    """Return soft or sharp (lung, bone) for the kernels of the large vendors; None if the kernel is not known."""
    name = (kernel or "").strip().upper()
    if (match := _CANON.fullmatch(name)) is not None:
        return "soft" if int(match[1]) < _SOFT_CANON else "sharp"
    if (match := _SIEMENS.fullmatch(name)) is not None:
        return "soft" if int(match[1]) < _SHARP_SIEMENS else "sharp"
    if name in _SHARP_NAMES or any(part in name for part in _SHARP_PARTS):
        return "sharp"
    return "soft" if name in _SOFT_NAMES or any(part in name for part in _SOFT_PARTS) else None
