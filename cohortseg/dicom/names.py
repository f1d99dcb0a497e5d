"""Body part, breathing and energy, as read from names in headers, which vendors and hospitals write as they like."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

_CHEST: Final = re.compile(
    r"CHEST|THORA|\bTHX\b|\bTHOR\b|LUNG|PULMO|POLMON|\bHRCT\b|\bCTPA\b|\bTAP\b"
    r"|\bN?CAP\b|BRUST|POUMON|T[OÓ]RAX|TOR[AÁ]C|PECHO"
    r"|KLATK|P[LŁ]U[CĆ]|PL[IÍ]C|[HG]RUDN|\bC/A/P\b|BORST|BR[OÖ]ST|TORAK[SO]|POITRINE|ГРУД|ОГК|Л[ЕЁ]ГК|胸|肺|흉부"
    # Regions that include the chest: CH/ABD/PEL, TX ABD (not a transplant), whole body, head to pelvis.
    r"|\bCHST\b|\bCH/|/CH/|\bCH[ +-]*(?=ABD)|\bCHST(?=ABD)|(?<!RENAL )(?<!LIVER )(?<!KIDNEY )\bTX[ /+-]*(?=ABD)"
    r"|(?<!\d )\b(TH|THO|THOR)[ ./+-]*(?=ABD)|(WHOLE|TOTAL).?BODY|\bTRUNK\b|\bWB\b|\bCA[ /-]*(?=PELVI)"
    r"|흉복|RUMPF|\bABD[ /+-]*TH\b|\bCHE/"
    r"|(HEAD|SKULL|NECK|HALS|KOPF)( BASE)? ?(TO|-) ?(MID.?)?(PELVI|THIGH|BECKEN|TOE)|SKULL THIGH"
    r"|PELVI\w* ?(TO|-) ?NECK",
    re.IGNORECASE,
)
_ELSEWHERE: Final = re.compile(
    r"ABD|PELVI|(?<!OVER)HEAD(?! ?FIRST)|BRAIN|SKULL|\bNECK|SPINE|LIVER|KIDNEY|(?<!AD)RENAL|COLON|EXTREMIT|\bLEGS?\b"
    r"|\bKNEE|\bHIP\b"
    r"|BECKEN|KOPF|BAUCH|ADDOM|\bVENTRE\b|BUIK|BRZU(CH|SZ)|\bBUK\b|LEBER|NIERE|FOIE|\bTESTA\b|CABEZA|\bT[EÊ]TE\b|\bHALS\b"
    r"|LUMB(?!I)|VERTEB|WIRBEL|ПОЗВОН|COLUMNA|\b[BHL]WS\b|RACHI|\bBATIN\b|\bB[RŘ]ICH|БРЮШ|ЖИВОТ|ГОЛОВ|腹|頭|头|盆|颈|頸|脑|脳|복부",
    re.IGNORECASE,
)
_SPINE: Final = re.compile(r"SPINE|VERTEB|WIRBEL|RACHI|COLUMNA|ПОЗВОН|LUMB(?!I)|LOMB[AE]R", re.IGNORECASE)
_THORACIC: Final = re.compile(r"TH?ORA[CKX]\w*|\bTHOR\b|ГРУДН\w*", re.IGNORECASE)
"""In the name of a spine series it means the thoracic spine, and does not say that the chest is in view."""
_EXPIRATION: Final = re.compile(
    r"(?<![A-Z])(EXPI?|E[KX]?S?PIR(?!AL)\w*|EXSP\w*|ESP|EXHAL\w*|AUSATM\w*|UITADEM\w*|V[YÝ]DECH\w*|WYDECH\w*)(?![A-Z])"
    r"|\d ?%[\d., ]*EX(?![A-Z])"  # a phase of a gated scan: 50% Ex
    r"|呼[气気]|ВЫДОХ",
    re.IGNORECASE,
)
_INSPIRATION: Final = re.compile(r"(?<![A-Z])(INSP(?!ACE)\w*|INHAL\w*|EINATM\w*|INADEM\w*)", re.IGNORECASE)
_ATTENUATION_SCAN: Final = re.compile(
    r"(?<![A-Z])(CT ?AC(?! ?\.)|AC[ -]CT|ATT?EN(UATION)?[ -]?CORR\w*)(?![A-Z])", re.IGNORECASE
)
# Siemens: VNC, Mono+, LungPBV, Rho/Z. GE: VUE, MD Iodine(Water), Mono. Philips: MonoE, Z Effective. Canon: Mono 70keV.
# Words of other languages and scans (Vue axiale, MONO 1.0) must not match.
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
_ONE_TUBE: Final = re.compile(r"(?<!\S)[AB]_(SN)?\d{2,3} ?KV", re.IGNORECASE)
"""Siemens dual-source images of one tube, A_80kV or B_Sn140kV; the mix of both (M_0.5) has the HU of a plain scan."""


def names_other_parts(series_description: str | None, body_part: str | None) -> bool:
    """Return whether a series is named after parts of the body other than the chest.

    SeriesDescription decides if it names any part, because BodyPartExamined is often that of the whole protocol.
    """
    return next((found for found in map(_is_elsewhere, (series_description, body_part)) if found is not None), False)


def named_after_other_study(series_names: Sequence[str | None], study_names: Sequence[str | None]) -> bool:
    """Return whether a series is named after no part of the body, and its study after others than the chest.

    ``study_names`` are judged together: one of them may name the chest, and another a part or a disease of another one.
    """
    if any(_is_elsewhere(name) is not None for name in series_names):
        return False
    return bool(_is_elsewhere(" / ".join(name for name in study_names if name)))


def _is_elsewhere(name: str | None) -> bool | None:
    """Return whether a name tells of parts of the body other than the chest; None if it tells of none."""
    text = _spaced(name)
    if _SPINE.search(text) and not _CHEST.search(_THORACIC.sub("", text)):
        return True
    if _CHEST.search(text):
        return False
    return True if _ELSEWHERE.search(text) else None


def names_expiration(description: str | None) -> bool:
    """Return whether a SeriesDescription says that the patient breathed out; one of a protocol of both does not."""
    name = _spaced(description)
    return _EXPIRATION.search(name) is not None and _INSPIRATION.search(name) is None


def names_attenuation_scan(description: str | None) -> bool:
    """Return whether a SeriesDescription names a scan for the attenuation correction of PET, made while breathing."""
    return _ATTENUATION_SCAN.search(_spaced(description)) is not None


@lru_cache
def names_spectral(description: str | None) -> bool:
    """Return whether a SeriesDescription names an image computed from several energies, or the image of one of them."""
    return _SPECTRAL.search(_spaced(description)) is not None or _ONE_TUBE.search(description or "") is not None


def _spaced(name: str | None) -> str:
    return (name or "").replace("_", " ")
