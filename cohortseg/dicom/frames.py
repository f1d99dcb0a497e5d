"""Enhanced multi-frame CT: the attributes of each frame, flattened to those of a classic single-slice file."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from cohortseg.dicom.elements import READ_ERRORS, tag_of

ENHANCED_CT: Final = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
"""SOP classes whose frames are slices."""
GROUP_SEQUENCES: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Sequences in which an enhanced file keeps attributes that a classic one has at top level."""


def _legacy(keyword: str) -> tuple[str, ...]:
    """Return where a legacy converted file keeps an attribute that has no macro of its own, or not this one."""
    return tuple(f"Unassigned{extent}ConvertedAttributesSequence.{keyword}" for extent in ("PerFrame", "Shared"))


# PS3.3 C.7.6.16.2 and C.8.15.3: the macros that can hold an attribute, and its name there; the first that states it
# counts.
_PLACES: Final = {
    "ImagePositionPatient": ("PlanePositionSequence.ImagePositionPatient",),
    "ImageOrientationPatient": ("PlaneOrientationSequence.ImageOrientationPatient",),
    "PixelSpacing": ("PixelMeasuresSequence.PixelSpacing",),
    "SliceThickness": ("PixelMeasuresSequence.SliceThickness",),
    "KVP": ("CTXRayDetailsSequence.KVP", *_legacy("KVP")),
    "RescaleIntercept": ("PixelValueTransformationSequence.RescaleIntercept",),
    "RescaleSlope": ("PixelValueTransformationSequence.RescaleSlope",),
    "RescaleType": ("PixelValueTransformationSequence.RescaleType",),
    "AcquisitionNumber": ("FrameContentSequence.FrameAcquisitionNumber",),
    "TemporalPositionIdentifier": (
        "FrameContentSequence.TemporalPositionIndex",
        *_legacy("TemporalPositionIdentifier"),
    ),
    "StackID": ("FrameContentSequence.StackID",),
    "AcquisitionDateTime": ("FrameContentSequence.FrameAcquisitionDateTime",),
    "NominalPercentageOfCardiacPhase": (
        "CardiacSynchronizationSequence.NominalPercentageOfCardiacPhase",
        *_legacy("NominalPercentageOfCardiacPhase"),
    ),
    "NominalPercentageOfRespiratoryPhase": (
        "RespiratorySynchronizationSequence.NominalPercentageOfRespiratoryPhase",
        *_legacy("NominalPercentageOfRespiratoryPhase"),
    ),
    "BodyPartExamined": (
        "FrameAnatomySequence.AnatomicRegionSequence.CodeMeaning",
        *_legacy("BodyPartExamined"),
    ),
    "ConvolutionKernel": ("CTReconstructionSequence.ConvolutionKernel", *_legacy("ConvolutionKernel")),
    "ContrastBolusAgent": _legacy("ContrastBolusAgent"),
    "ImageType": ("CTImageFrameTypeSequence.FrameType",),
    "VolumeBasedCalculationTechnique": ("CTImageFrameTypeSequence.VolumeBasedCalculationTechnique",),
    "LossyImageCompression": _legacy("LossyImageCompression"),
}
_KEPT: Final = {
    *("AcquisitionDateTime", "ImageType", "VolumeBasedCalculationTechnique"),
    *("BodyPartExamined", "ConvolutionKernel", "ContrastBolusAgent", "KVP", "LossyImageCompression"),
}
"""Attributes that the top level of the file may state for all frames."""
_LEFT_OUT: Final = frozenset(map(tag_of, {*GROUP_SEQUENCES, "PixelData", "AcquisitionTime"} | _PLACES.keys() - _KEPT))
"""Tags at top level that no frame takes from there."""


def frame_datasets(dataset: Dataset) -> list[Dataset]:
    """Return one dataset per frame, without pixels, in frame order.

    Parameters
    ----------
    dataset
        An enhanced or legacy converted enhanced CT image.

    Returns
    -------
    list of Dataset
        Each holds the file's top-level attributes. Attributes of a frame come from its own functional groups, else
        from the shared ones, and are absent if neither states them (a few may also stand at top level).

    Raises
    ------
    ValueError
        If the number of per-frame groups is not NumberOfFrames.

    References
    ----------
    DICOM PS3.3, C.7.6.16 (multi-frame functional groups) and C.8.15 (enhanced CT).
    """
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if not groups or len(groups) != int(dataset.get("NumberOfFrames") or 0):
        raise ValueError("the number of per-frame functional groups is not NumberOfFrames")
    shared = _stated(next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), Dataset()))
    top = Dataset()
    top.set_original_encoding(None, None, dataset.original_character_set)
    for tag in dataset.keys() - _LEFT_OUT:
        top[tag] = dataset.get_item(tag)  # as read: text in an undeclared character set is told from the bytes
    if not top.get("ContrastBolusAgent") and (agents := _meanings(dataset, "ContrastBolusAgentSequence")):
        top.ContrastBolusAgent = "; ".join(agents)  # an enhanced CT states agents by their codes only
    return [_flat(top, _stated(group), shared) for group in groups]


def _flat(top: Dataset, group: Mapping[str, DataElement], shared: Mapping[str, DataElement]) -> Dataset:
    frame = Dataset()
    frame.set_original_encoding(None, None, top.original_character_set)
    frame.update(top)
    for keyword, places in _PLACES.items():
        found = (groups[place] for place in places for groups in (group, shared) if place in groups)
        if (element := next(found, None)) is not None:
            # an element of its own: all frames share those of the top level
            frame[keyword] = DataElement(tag_of(keyword), element.VR, element.value, already_converted=True)
    return frame


def _stated(groups: Dataset) -> dict[str, DataElement]:
    """Return what functional groups state, by place; nothing where it cannot be read."""
    found: dict[str, DataElement] = {}
    for place in {place for places in _PLACES.values() for place in places}:
        *sequences, name = place.split(".")
        with suppress(*READ_ERRORS):
            items = [groups]
            for sequence in sequences:
                items = [inner for item in items for inner in item.get(sequence) or ()]
            elements = [item[name] for item in items if item.get(name) is not None]
            # Macros have one item but for both tubes of a dual-source scanner: where they differ, none is right.
            if elements and all(element.value == elements[0].value for element in elements):
                found[place] = elements[0]
    return found


def _meanings(dataset: Dataset, sequence: str) -> list[str]:
    """Return the meanings of the codes of a sequence; none if it is absent or cannot be read."""
    with suppress(*READ_ERRORS):
        return [str(item.CodeMeaning) for item in dataset.get(sequence) or () if item.get("CodeMeaning")]
    return []
