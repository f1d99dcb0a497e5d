"""Enhanced multi-frame CT: the attributes of each frame, flattened to those of a classic single-slice file."""

from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from cohortseg.dicom.elements import tag_of

ENHANCED_CT: Final = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
"""SOP classes whose frames are slices."""
GROUP_SEQUENCES: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Sequences in which an enhanced file keeps attributes that a classic one has at top level."""
_OF_LEGACY: Final = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
"""Sequences in which a legacy converted file keeps the attributes that have no macro of their own."""
# PS3.3 C.7.6.16.2 and C.8.15.3: the macros that can hold an attribute; the first that states it counts.
_MACROS: Final = {
    "ImagePositionPatient": ("PlanePositionSequence",),
    "ImageOrientationPatient": ("PlaneOrientationSequence",),
    "PixelSpacing": ("PixelMeasuresSequence",),
    "SliceThickness": ("PixelMeasuresSequence",),
    "KVP": ("CTXRayDetailsSequence", *_OF_LEGACY),
    "RescaleIntercept": ("PixelValueTransformationSequence",),
    "RescaleSlope": ("PixelValueTransformationSequence",),
    "RescaleType": ("PixelValueTransformationSequence",),
    "AcquisitionNumber": ("FrameContentSequence",),
    "TemporalPositionIdentifier": ("FrameContentSequence",),
    "StackID": ("FrameContentSequence",),
    "AcquisitionDateTime": ("FrameContentSequence",),
    "NominalPercentageOfCardiacPhase": ("CardiacSynchronizationSequence",),
    "NominalPercentageOfRespiratoryPhase": ("RespiratorySynchronizationSequence",),
    "ConvolutionKernel": ("CTReconstructionSequence", *_OF_LEGACY),
    "ContrastBolusAgent": _OF_LEGACY,
    "ImageType": ("CTImageFrameTypeSequence",),
    "VolumeBasedCalculationTechnique": ("CTImageFrameTypeSequence",),
}
_NAMES: Final = {
    "AcquisitionNumber": "FrameAcquisitionNumber",
    "TemporalPositionIdentifier": "TemporalPositionIndex",
    "AcquisitionDateTime": "FrameAcquisitionDateTime",
    "ImageType": "FrameType",
}
"""Attributes that have another name within a macro."""
_KEPT: Final = {
    *("AcquisitionDateTime", "ImageType", "VolumeBasedCalculationTechnique"),
    *("ConvolutionKernel", "ContrastBolusAgent", "KVP"),
}
"""Attributes that the top level of the file may state for all frames."""
_LEFT_OUT: Final = frozenset(map(tag_of, {*GROUP_SEQUENCES, "PixelData", "AcquisitionTime"} | _MACROS.keys() - _KEPT))
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
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    top = Dataset()
    top.set_original_encoding(None, None, dataset.original_character_set)
    for tag in dataset.keys() - _LEFT_OUT:
        top[tag] = dataset.get_item(tag)  # as read: text in an undeclared character set is told from the bytes
    return [_flat(top, group, shared) for group in groups]


def _flat(top: Dataset, group: Dataset, shared: Dataset) -> Dataset:
    frame = Dataset()
    frame.set_original_encoding(None, None, top.original_character_set)
    frame.update(top)
    for keyword, macros in _MACROS.items():
        name = _NAMES.get(keyword, keyword)
        places = (groups.get(macro) for macro in macros for groups in (group, shared))
        items = (next(iter(place), None) for place in places if place)
        value = next((item.get(name) for item in items if item is not None and item.get(name) is not None), None)
        if value is not None:
            frame.pop(keyword, None)  # all frames share the top-level element: setattr would change it for all
            setattr(frame, keyword, value)
    return frame
