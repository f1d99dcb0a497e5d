"""Names of the flags in ``qc_flags``, grouped by what raises them, and what they mean to readers of the tables."""

from typing import Final

SINGLE_SLICE: Final = "single_slice"
DERIVED_REFORMAT: Final = "derived_reformat"
SPECTRAL_IMAGE: Final = "spectral_image"
LOSSY_COMPRESSION: Final = "lossy_compression"
THICK_SLICES: Final = "thick_slices"
SPARSE_SLICES: Final = "sparse_slices"
ROTATED_IN_PLANE: Final = "rotated_in_plane"
SPLIT_SERIES: Final = "split_series"
PARTIAL_COVERAGE: Final = "partial_coverage"
FILES_UNREADABLE: Final = "files_unreadable"
CONCATENATION_INCOMPLETE: Final = "concatenation_incomplete"
TRANSFER_SYNTAX_MISSING: Final = "transfer_syntax_missing"
MONOCHROME1: Final = "monochrome1"
DUPLICATES_DROPPED: Final = "duplicates_dropped"
MISSING_PATIENT_ID: Final = "missing_patient_id"
PLACEHOLDER_PATIENT_ID: Final = "placeholder_patient_id"
TWO_PATIENT_IDS: Final = "two_patient_ids"
PATIENT_CONFLICT: Final = "patient_conflict"
STUDY_DATE_CONFLICT: Final = "study_date_conflict"
MISSING_STUDY_DATE: Final = "missing_study_date"
EARLY_STUDY_DATE: Final = "early_study_date"
FUTURE_STUDY_DATE: Final = "future_study_date"
ACQUIRED_ON_ANOTHER_DATE: Final = "acquired_on_another_date"
MIXED_ORIENTATION: Final = "mixed_orientation"
SLICE_GAP: Final = "slice_gap"
UNEVEN_SPACING: Final = "uneven_spacing"
GANTRY_TILT: Final = "gantry_tilt"
CONFLICTING_SLICES: Final = "conflicting_slices"
OTHER_BODY_PART: Final = "other_body_part"
STUDY_OF_OTHER_PART: Final = "study_of_other_part"
EXPIRATION: Final = "expiration"
RESAMPLED: Final = "resampled"
UNTILTED: Final = "untilted"
COARSE_PIXELS: Final = "coarse_pixels"
BURNED_IN_ANNOTATION: Final = "burned_in_annotation"
MAYBE_PROJECTION: Final = "maybe_projection"
SLICES_APART: Final = "slices_apart"
CHOSEN_BY_UID: Final = "chosen_by_uid"
CONSECUTIVE_DAYS: Final = "consecutive_days"
ANOTHER_FAILED: Final = "another_failed"
UNDECLARED_PADDING: Final = "undeclared_padding"
BLANK_SLICES: Final = "blank_slices"
REPEATED_SLICES: Final = "repeated_slices"
ODD_SLICES: Final = "odd_slices"
INTERLEAVED_SCANS: Final = "interleaved_scans"
HU_SHIFTED: Final = "hu_shifted"
HU_IMPLAUSIBLE: Final = "hu_implausible"
LUNG_CUT_BY_FIELD_OF_VIEW: Final = "lung_cut_by_field_of_view"
LUNG_CUT_AT_END_SLICE: Final = "lung_cut_at_end_slice"
LUNG_LOST_BETWEEN: Final = "lung_lost_between"
AIR_WITHOUT_VESSELS: Final = "air_without_vessels"
AIR_BELOW_LUNGS: Final = "air_below_lungs"
ONE_LUNG: Final = "one_lung"
LUNG_VOLUME_IMPLAUSIBLE: Final = "lung_volume_implausible"
DENSE_REGION_EXCLUDED: Final = "dense_region_excluded"
NOISY: Final = "noisy"
SEVERAL_STUDIES: Final = "several_studies"
LESS_LUNG_THAN_OTHER_DATES: Final = "less_lung_than_other_dates"
SAME_AS_OTHER_DATE: Final = "same_as_other_date"
SAME_AS_OTHER_PATIENT: Final = "same_as_other_patient"

HEADER_FLAGS: Final = {
    SINGLE_SLICE: "one slice only: percents are of area; volumes and the spacing between slices are not known",
    DERIVED_REFORMAT: "axial, but computed from another series (ImageType names a reformat, or says DERIVED and no "
    "lossy compression explains it)",
    SPECTRAL_IMAGE: "computed from several energies (monoenergetic, without iodine), or one of them: not HU of a plain "
    "scan",
    LOSSY_COMPRESSION: "pixels were compressed with loss before they came here (LossyImageCompression is 01, or the "
    "transfer syntax is JPEG baseline, extended, or near-lossless JPEG-LS)",
    BURNED_IN_ANNOTATION: "BurnedInAnnotation is YES: the pixels may show the patient's name, and so would pictures, "
    "report and exports",
    THICK_SLICES: "slices are thicker, or farther apart, than 5 mm: volumes are coarse",
    SPARSE_SLICES: "slices are farther apart than 1.5 times their thickness: lung between them was not imaged",
    ROTATED_IN_PLANE: "rows are turned by more than 10 degrees in the axial plane: percents are some tenths off",
    SPLIT_SERIES: "its UID holds several volumes (of other plane, space, kernel, size, acquisition); this is one",
    PARTIAL_COVERAGE: "other volumes of its series reach where this one does not: part of the lungs may be missing",
    FILES_UNREADABLE: "files beside its own could not be read, or lack a position (files.parquet): slices may be lost",
    CONCATENATION_INCOMPLETE: "its multi-frame files are parts of a longer one (ConcatenationUID), of which "
    "others are not here: slices may be lost",
    TRANSFER_SYNTAX_MISSING: "no TransferSyntaxUID (a bare data set): pixels taken as uncompressed, as they stand",
    MONOCHROME1: "PhotometricInterpretation is MONOCHROME1 (shown inverted): HU are what the rescale says",
    DUPLICATES_DROPPED: "files that repeat a slice with the same pixels were left out",
    MISSING_PATIENT_ID: "PatientID is absent or empty: the series cannot be followed over time",
    PLACEHOLDER_PATIENT_ID: "PatientID is a word like ANONYMOUS, or has no letter or digit: perhaps of several "
    "persons, counted as one",
    TWO_PATIENT_IDS: "its slices (SOPInstanceUID), or series of its study in its frame of reference, are there under "
    "another PatientID too: one scan counted for two patients?",
    PATIENT_CONFLICT: "files of its PatientID disagree in issuer, birth date or sex: perhaps of several persons",
    STUDY_DATE_CONFLICT: "its slices, or series of its study in its frame of reference, are there under another "
    "StudyDate too (corrected?): one scan counted for two dates? Of copies in one series, the date that most slices "
    "have is taken, or that of the copies that state most, or that of the first path. Also where a few slices of its "
    "series have another date, and so are not in it",
    MISSING_STUDY_DATE: "StudyDate is absent, empty, none, or a filler (1900-01-01, before 1800): no place in time",
    EARLY_STUDY_DATE: "StudyDate is before 1972, when there was no CT: moved on purpose, or a filler for any visit",
    FUTURE_STUDY_DATE: "StudyDate lies in the future (moved on purpose, or a filler): look at the days between dates",
    ACQUIRED_ON_ANOTHER_DATE: "acquisition_date is more than a day from StudyDate, which all tables count by: filed "
    "under another visit, or only one of both was moved or filled in to hide it",
    MIXED_ORIENTATION: "slices of different orientation under one SeriesInstanceUID; skipped",
    SLICE_GAP: "slices are missing between others; skipped unless repaired",
    UNEVEN_SPACING: "distances between slices differ by more than 5 % + 0.1 mm; skipped unless repaired",
    GANTRY_TILT: "slices are sheared against their normal by more than 0.5 degrees; skipped unless repaired",
    CONFLICTING_SLICES: "different pixels (or several frames) at the same position, or one SOPInstanceUID with two "
    "orientations or spacings; skipped",
    OTHER_BODY_PART: "body_part or SeriesDescription name other parts of the body, and not the chest",
    STUDY_OF_OTHER_PART: "body_part and SeriesDescription name no part of the body, and ProtocolName and "
    "StudyDescription others than the chest, or a disease of them: look at the picture",
    EXPIRATION: "its description names an expiration: less lung, and more of it dense, than in a scan breathed in",
    RESAMPLED: "slices were interpolated to one spacing (--repair resample): volumes are estimates",
    UNTILTED: "slices were moved in their planes to an upright grid (--repair untilt): volumes are estimates",
    COARSE_PIXELS: "pixels are wider than 4 mm: walls and vessels blur into lesions, and percents come out too high",
    MAYBE_PROJECTION: "its description names a projection (MIP, VRT), its ImageType does not: look at it",
}
"""Raised by headers, and by the pixels of copies: all that ``--select`` can see."""

CHOICE_FLAGS: Final = {
    SLICES_APART: "its study, or its patient that day, has more series of one slice, like it: slices of one scan?",
    CHOSEN_BY_UID: "another series of its study is equal in all preferences: which is measured is left to their UIDs, "
    "or to the numbers of phase and acquisition within one",
    CONSECUTIVE_DAYS: "series of its study are of the day before or after: taken for one visit past midnight, "
    "of which one series is measured; if they are several visits, give each a StudyInstanceUID of its own",
    ANOTHER_FAILED: "the series preferred to it in its study could not be measured, or holds part of the lungs only",
}
"""Raised by the choice among several series of a study."""

PIXEL_FLAGS: Final = {
    UNDECLARED_PADDING: "the corners of all slices hold one value that is no air and no declared padding: taken as air",
    BLANK_SLICES: "slices hold one value throughout; between others: not evaluable, at an end: lung may be missing",
    REPEATED_SLICES: "neighbouring slices have equal pixels: the same image at several positions",
    ODD_SLICES: "slices do not fit those beside them (damaged, another image); not evaluable if their rescale differs "
    "from that of most",
    INTERLEAVED_SCANS: "slices look like two scans by turns (breathing in and out, two patients); not evaluable",
    HU_SHIFTED: "neither fat nor muscle has its HU, or air does not: the rescale may be wrong, and percents with it",
    HU_IMPLAUSIBLE: "too few voxels like air or like soft tissue: the values are not Hounsfield units; not evaluable",
    LUNG_CUT_BY_FIELD_OF_VIEW: "lung touches the edge of the image or of what was scanned: part may lie outside",
    LUNG_CUT_AT_END_SLICE: "the first or last slice still holds much lung: part of it was not scanned",
    LUNG_LOST_BETWEEN: "slices hold far less lung than those below and above: most of it was lost there",
    AIR_WITHOUT_VESSELS: "regions 2 cm wide as dark as air count as lung: bullae, emphysema, or a pneumothorax",
    AIR_BELOW_LUNGS: "20 mL or more of what counts as lung lie low down and apart from both lungs: stool or food mixed "
    "with gas, or lung under a dense lobe",
    ONE_LUNG: "one side holds less than 5 % of the lung found, or the sides meet over much of their depth: a lung was "
    "removed, lies outside the field of view, or is dense; sides and zones may be wrong",
    LUNG_VOLUME_IMPLAUSIBLE: "below 0.8 or above 9 L of lung: not the whole chest, a child, or air that is no lung",
    DENSE_REGION_EXCLUDED: "large dense regions behind, in front or on one side, perhaps left out in part: effusion, "
    "atelectasis, consolidation",
    NOISY: "noise_hu is 60 or more: low dose or a sharp kernel: noise may be taken for ground glass",
}
"""Raised by the pixels of a decoded series, and by the lungs found in them."""

TIMELINE_FLAGS: Final = {
    SEVERAL_STUDIES: "more than one study of the patient has this date: several visits under a filler, or repeated (in "
    "timeline and patients only)",
    LESS_LUNG_THAN_OTHER_DATES: "less than 65 % of the (plausible) lung volume of another date of the patient: "
    "part of it was not scanned, or it was breathed out; look before you compare (in timeline and patients only)",
    SAME_AS_OTHER_DATE: "lung volume and mean HU are exactly those of another date of the patient: one scan filed "
    "under two dates? (in timeline and patients only)",
    SAME_AS_OTHER_PATIENT: "lung volume and mean HU are exactly those of another patient: one scan filed under two "
    "identifiers? (in timeline and patients only)",
}
"""Raised by the other dates of a patient, or by other patients: in timeline and patients only."""

NOT_PLAIN: Final = (SPECTRAL_IMAGE, MAYBE_PROJECTION)
"""Flags of series whose values are hardly those of a plain scan."""
