"""Enhanced multi-frame CT: each frame's attributes, flattened to what a classic file of one slice would state."""

from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

ENHANCED_CT: Final = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
"""SOP classes whose frames are slices."""
GROUP_SEQUENCES: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Where an enhanced file keeps what a classic one states at its top."""
# PS3.3 C.7.6.16.2 and C.8.15.3: the macros that hold an attribute, the first that states it counts.
_MACROS: Final = {
    "ImagePositionPatient": ("PlanePositionSequence",),
    "ImageOrientationPatient": ("PlaneOrientationSequence",),
    "PixelSpacing": ("PixelMeasuresSequence",),
    "SliceThickness": ("PixelMeasuresSequence",),
    "RescaleIntercept": ("PixelValueTransformationSequence",),
    "RescaleSlope": ("PixelValueTransformationSequence",),
    "RescaleType": ("PixelValueTransformationSequence",),
    "AcquisitionNumber": ("FrameContentSequence",),
    "TemporalPositionIdentifier": ("FrameContentSequence",),
    "StackID": ("FrameContentSequence",),
    "AcquisitionDateTime": ("FrameContentSequence",),
    "NominalPercentageOfCardiacPhase": ("CardiacSynchronizationSequence",),
    "ConvolutionKernel": (
        "CTReconstructionSequence",
        "UnassignedPerFrameConvertedAttributesSequence",  # of a legacy converted file
        "UnassignedSharedConvertedAttributesSequence",
    ),
    "ImageType": ("CTImageFrameTypeSequence",),
    "VolumeBasedCalculationTechnique": ("CTImageFrameTypeSequence",),
}
_NAMES: Final = {
    "AcquisitionNumber": "FrameAcquisitionNumber",
    "TemporalPositionIdentifier": "TemporalPositionIndex",
    "AcquisitionDateTime": "FrameAcquisitionDateTime",
    "ImageType": "FrameType",
}
"""Attributes that a macro calls by another name."""
_KEPT: Final = {"AcquisitionDateTime", "ImageType", "VolumeBasedCalculationTechnique", "ConvolutionKernel"}
"""What the top of the file may state for all frames."""


def frame_datasets(dataset: Dataset) -> list[Dataset]:
    """Return one dataset a frame, in the order of the frames, without pixels.

    Parameters
    ----------
    dataset
        An enhanced or legacy converted enhanced CT image.

    Returns
    -------
    list of Dataset
        The file's top-level attributes; what belongs to a frame comes from its own functional groups, else from the
        shared ones, and is absent if neither states it.

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
    left_out = {*GROUP_SEQUENCES, "PixelData", "AcquisitionTime"} | set(_MACROS) - _KEPT
    for element in dataset:
        if element.keyword not in left_out:
            top.add(element)
    return [_flat(top, group, shared) for group in groups]


def _flat(top: Dataset, group: Dataset, shared: Dataset) -> Dataset:
    frame = Dataset()
    frame.update(top)
    for keyword, macros in _MACROS.items():
        name = _NAMES.get(keyword, keyword)
        places = (groups.get(macro) for macro in macros for groups in (group, shared))
        items = (next(iter(place), None) for place in places if place)
        value = next((item.get(name) for item in items if item is not None and item.get(name) is not None), None)
        if value is not None:
            frame.pop(keyword, None)  # the element of the top is one for all frames
            setattr(frame, keyword, value)
    return frame
