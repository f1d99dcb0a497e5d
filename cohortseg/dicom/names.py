"""What names in headers say, which every vendor and hospital writes as it likes: kernel, body part, breath, energy."""

import re
from functools import lru_cache
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
_CHEST: Final = re.compile(
    r"CHEST|THORA|\bTHX\b|LUNG|PULMO|POLMON|\bHRCT\b|\bCTPA\b|\bTAP\b|\bN?CAP\b|BRUST|POUMON|T[OÓ]RAX|TOR[AÁ]C|PECHO"
    r"|KLATK|P[LŁ]UC|PL[IÍ]C|HRUDN|\bC/A/P\b|BORST|胸|肺|흉부"
    # What holds the chest among others: CH/ABD/PEL, TX ABD (no transplant), whole body, head to pelvis.
    r"|\bCHST\b|\bCH/|/CH/|\bCH[ +-]*(?=ABD)|\bCHST(?=ABD)|(?<!RENAL )(?<!LIVER )(?<!KIDNEY )\bTX[ /+-]*(?=ABD)"
    r"|(?<!\d )\b(TH|THO|THOR)[ /+-]*(?=ABD)|(WHOLE|TOTAL).?BODY|\bTRUNK\b|\bWB\b"
    r"|(HEAD|SKULL|HALS|KOPF)( BASE)? ?(TO|-) ?(MID.?)?(PELVI|THIGH|BECKEN)",
    re.IGNORECASE,
)
_ELSEWHERE: Final = re.compile(
    r"ABD|PELVI|HEAD(?! ?FIRST)|BRAIN|SKULL|\bNECK|SPINE|LIVER|KIDNEY|RENAL|COLON|EXTREM|\bLEG|\bKNEE|\bHIP\b"
    r"|BECKEN|KOPF|BAUCH|ADDOM|\bVENTRE\b|BUIK|BRZUCH|\bBUK\b|LEBER|NIERE|FOIE|\bTESTA\b|CABEZA|\bT[EÊ]TE\b|\bHALS\b|腹|頭|头|盆|복부",
    re.IGNORECASE,
)
_EXPIRATION: Final = re.compile(r"(?<![A-Z])(EXP|EXPIR\w*|EXSP\w*|ESP|ESPIR\w*|AUSATM\w*)(?![A-Z])", re.IGNORECASE)
# Siemens: VNC, Mono+, LungPBV, Rho/Z. GE: VUE, MD Iodine(Water), Mono. Philips: MonoE, Z Effective. Canon: Mono 70keV.
# Words of other tongues and scans (Vue axiale, MONO 1.0) are none of these.
_MATERIALS: Final = "IODINE|WATER|CALCIUM|FAT|URIC ?ACID|HAP"
_SPECTRAL: Final = re.compile(
    r"(?<![A-Z])(VMI|VMS|VNC|^VUE$|VUE(?= ?\()|VUE IODINE|(LUNG ?)?PBV|MONO ?\+(?! ?KM)|MONO[ -]?E|MONO-?ENERG\w*"
    r"|MONO(CHROMATIC)?[ -]*(?=([4-9]\d|1\d\d|200)(?! ?(KVP?|MAS?|MM|ML|S|SEC|SEK)\b)(?![.\d]))"
    r"|([4-9]\d|1\d\d|200) *KEV"
    r"|VIRTU[AE]L+[ -]?(NON[ -]?(CON|CA|ENH)\w*|UNENH\w*|MONOE?\b|MONOENERG\w*|NATIVE?\b)|MD IODINE|(^|DEIM )IODINE$"
    r"|IOD(INE)? ?(MAP|NO WATER|DENSITY|OVERLAY)|(EFFECTIVE|EFF) ?Z|Z ?EFF\w*|ELECTRON DENSITY|RHO[ /]Z"
    rf"|CA(LCIUM)? ?SUPP(?!ORT|LE)\w*|({_MATERIALS}) ?\(-?({_MATERIALS})\)|({_MATERIALS}) REMOVED)(?![A-Z])",
    re.IGNORECASE,
)


def kernel_kind(kernel: str | None) -> str | None:
    """Return soft or sharp (lung, bone) for the kernels of the large vendors; None if it is not known."""
    name = (kernel or "").strip().upper()
    if (match := _CANON.fullmatch(name)) is not None:
        return "soft" if int(match[1]) < _SOFT_CANON else "sharp"
    if (match := _SIEMENS.fullmatch(name)) is not None:
        return "soft" if int(match[1]) < _SHARP_SIEMENS else "sharp"
    if name in _SHARP_NAMES or any(part in name for part in _SHARP_PARTS):
        return "sharp"
    return "soft" if name in _SOFT_NAMES or any(part in name for part in _SOFT_PARTS) else None


def names_other_parts(*names: str | None) -> bool:
    """Return whether BodyPartExamined or SeriesDescription name parts of the body, and the chest is not among them."""
    text = " ".join(name for name in names if name).replace("_", " ")
    return _ELSEWHERE.search(text) is not None and _CHEST.search(text) is None


def names_expiration(description: str | None) -> bool:
    """Return whether a SeriesDescription says that the patient breathed out."""
    return _EXPIRATION.search((description or "").replace("_", " ")) is not None


@lru_cache
def names_spectral(description: str | None) -> bool:
    """Return whether a SeriesDescription names what is computed from scans of several energies."""
    return _SPECTRAL.search((description or "").replace("_", " ")) is not None
