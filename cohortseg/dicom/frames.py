"""Enhanced multi-frame CT: the attributes of each frame, flattened to those of a classic single-slice file."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from cohortseg.dicom.elements import READ_ERRORS, Attributes, tag_of

ENHANCED_CT: Final = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
"""SOP classes whose frames are slices."""
GROUP_SEQUENCES: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Sequences in which an enhanced file keeps attributes that a classic one has at top level."""


def _legacy(keyword: str) -> tuple[str, ...]:
    """Return where a legacy converted file keeps an attribute that it has no macro for."""
    return tuple(f"Unassigned{extent}ConvertedAttributesSequence.{keyword}" for extent in ("PerFrame", "Shared"))


# PS3.3 C.7.6.16.2 and C.8.15.3: the macro that holds an attribute, and its name there.
_MACROS: Final = {
    "ImagePositionPatient": "PlanePositionSequence.ImagePositionPatient",
    "ImageOrientationPatient": "PlaneOrientationSequence.ImageOrientationPatient",
    "PixelSpacing": "PixelMeasuresSequence.PixelSpacing",
    "SliceThickness": "PixelMeasuresSequence.SliceThickness",
    "KVP": "CTXRayDetailsSequence.KVP",
    "RescaleIntercept": "PixelValueTransformationSequence.RescaleIntercept",
    "RescaleSlope": "PixelValueTransformationSequence.RescaleSlope",
    "RescaleType": "PixelValueTransformationSequence.RescaleType",
    "AcquisitionNumber": "FrameContentSequence.FrameAcquisitionNumber",
    "TemporalPositionIdentifier": "FrameContentSequence.TemporalPositionIndex",
    "StackID": "FrameContentSequence.StackID",
    "AcquisitionDateTime": "FrameContentSequence.FrameAcquisitionDateTime",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence.NominalPercentageOfCardiacPhase",
    "NominalPercentageOfRespiratoryPhase": "RespiratorySynchronizationSequence.NominalPercentageOfRespiratoryPhase",
    "ConvolutionKernel": "CTReconstructionSequence.ConvolutionKernel",
    "ImageType": "CTImageFrameTypeSequence.FrameType",
    "VolumeBasedCalculationTechnique": "CTImageFrameTypeSequence.VolumeBasedCalculationTechnique",
}
_ELSE: Final = {
    **{
        keyword: _legacy(keyword)
        for keyword in (
            *("KVP", "ConvolutionKernel", "ContrastBolusAgent", "TemporalPositionIdentifier"),
            *("NominalPercentageOfCardiacPhase", "NominalPercentageOfRespiratoryPhase"),
        )
    },
    "BodyPartExamined": (
        *_legacy("BodyPartExamined"),
        "FrameAnatomySequence.AnatomicRegionSequence.CodeMeaning",
    ),
}
"""Where an attribute is looked for that neither its macro nor the top level states."""
_LOSSY: Final = _legacy("LossyImageCompression")
_PLACES: Final = {place: place.split(".") for place in (*_MACROS.values(), *chain(*_ELSE.values()), *_LOSSY)}
"""Every such place, with the keywords on the way there."""
_KEPT: Final = {
    *("AcquisitionDateTime", "ImageType", "VolumeBasedCalculationTechnique"),
    *("BodyPartExamined", "ConvolutionKernel", "ContrastBolusAgent", "KVP"),
}
"""Attributes that the top level of the file may state for all frames."""
_LEFT_OUT: Final = frozenset(
    map(tag_of, {*GROUP_SEQUENCES, "PixelData", "AcquisitionTime"} | (_MACROS.keys() | _ELSE.keys()) - _KEPT)
)
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
        from the shared ones, and are absent if neither states them (a few may also stand at top level, or among the
        unassigned attributes of a converted file).

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
    agents = _meanings(dataset, "ContrastBolusAgentSequence")
    if agents and Attributes.of(top).text("ContrastBolusAgent") is None:  # an enhanced CT states agents by codes only
        top["ContrastBolusAgent"] = _element("ContrastBolusAgent", "LO", "; ".join(agents))
    return [_flat(top, _stated(group), shared) for group in groups]


def _flat(top: Dataset, group: Mapping[str, DataElement], shared: Mapping[str, DataElement]) -> Dataset:
    frame = Dataset()
    frame.set_original_encoding(None, None, top.original_character_set)
    frame.update(top)
    for keyword in _MACROS.keys() | _ELSE.keys():
        macro, others = _MACROS.get(keyword), _ELSE.get(keyword, ())
        found = _first((group, shared), () if macro is None else (macro,))
        if found is None and not (keyword in frame and frame.get_item(keyword).value):
            found = _first((group, shared), others)
        if found is not None:
            frame[keyword] = _element(keyword, found.VR, found.value)
    if any(groups[place].value == "01" for groups in (group, shared) for place in _LOSSY if place in groups):
        frame["LossyImageCompression"] = _element("LossyImageCompression", "CS", "01")  # what is lost stays lost
    return frame


def _first(groups: Sequence[Mapping[str, DataElement]], places: Sequence[str]) -> DataElement | None:
    return next((stated[place] for place in places for stated in groups if place in stated), None)


def _element(keyword: str, vr: str, value: object) -> DataElement:
    """Return an element of a frame's own: those of the top level are shared by all frames."""
    return DataElement(tag_of(keyword), vr, value, already_converted=True)


def _stated(groups: Dataset) -> dict[str, DataElement]:
    """Return what functional groups state, by place; nothing where it is empty or cannot be read."""
    found: dict[str, DataElement] = {}
    for place, (*sequences, name) in _PLACES.items():
        try:
            items = [groups]
            for sequence in sequences:
                items = [inner for item in items for inner in item.get(sequence) or ()]
            elements = [item[name] for item in items if name in item and not item[name].is_empty]
        except MemoryError:
            raise
        except READ_ERRORS:
            continue
        if elements:
            # Macros have one item but for both tubes of a dual-source scanner: where they differ, none is right.
            same = all(element.value == elements[0].value for element in elements)
            found[place] = elements[0] if same else DataElement(elements[0].tag, elements[0].VR, None)
    return found


def _meanings(dataset: Dataset, sequence: str) -> list[str]:
    """Return the different meanings of the items of a code sequence; none if it cannot be read."""
    try:
        meanings = [Attributes.of(item).text("CodeMeaning") for item in dataset.get(sequence) or ()]
    except MemoryError:
        raise
    except READ_ERRORS:
        return []
    return list(dict.fromkeys(filter(None, meanings)))
