"""Tables of cohorts and samples: columns, types, units and meanings (for those of evaluate: ``evaluate/tables.py``)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import polars as pl

from cohortseg.burden import HIGH_OPACITY_HU, MIN_LESION_ML, PERCENTILES
from cohortseg.labels import SIDES, ZONES


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    dtype: pl.DataType
    meaning: str
    """Content, unit, and DICOM attribute or formula. Null always means: not measured or not known."""


@dataclass(frozen=True, kw_only=True)
class TableSchema:
    """One table and its columns in order."""

    name: str
    version: int
    """Raised whenever a column is added, removed or changes its meaning."""
    row: str
    """What one row is."""
    columns: tuple[Column, ...]
    never_null: tuple[str, ...] = ()
    """Columns that every row must fill."""

    @property
    def file_name(self) -> str:
        """Name of the table's file in an output folder."""
        return f"{self.name}.parquet"

    @cached_property
    def polars_schema(self) -> pl.Schema:
        """Names and types of the columns as a Polars schema."""
        return pl.Schema({column.name: column.dtype for column in self.columns})


_TEXT, _INT, _REAL, _DATE, _TEXTS = pl.String(), pl.Int64(), pl.Float64(), pl.Date(), pl.List(pl.String())

_PATIENT = (Column("patient_id", _TEXT, "PatientID (0010,0020); bytes invalid in its character set appear as \\xNN"),)
_TIME = (
    Column("study_date", _DATE, "StudyDate (0008,0020)"),
    Column(
        "days_since_baseline",
        _INT,
        "days since the earliest study date of the patient's chosen series; null without patient_id",
    ),
    Column("timepoint", _INT, "0 for the earliest study date, then 1, 2, ... in order of date"),
)
_SERIES = (
    Column("study_instance_uid", _TEXT, "StudyInstanceUID (0020,000D)"),
    Column("series_instance_uid", _TEXT, "SeriesInstanceUID (0020,000E)"),
)
_VOLUME = Column("volume", _INT, "number of the volume within its series, from 1: one UID can hold several")
_SPACING = (
    Column(
        "spacing_z_mm",
        _REAL,
        "distance between slice centres along the normal, from positions (after resample: the new one); null for a "
        "single slice, or uneven spacing that is not repaired",
    ),
    Column("spacing_y_mm", _REAL, "PixelSpacing (0028,0030), between rows"),
    Column("spacing_x_mm", _REAL, "PixelSpacing (0028,0030), between columns"),
)
_ACQUISITION = (
    Column(
        "acquisition_date",
        _DATE,
        "AcquisitionDate (0008,0022), else date of AcquisitionDateTime (0008,002A), that most of its slices have: when "
        "they were scanned. Days are counted from StudyDate all the same",
    ),
    Column(
        "phase",
        _TEXT,
        "TemporalPositionIdentifier (0020,0100), NominalPercentageOfCardiacPhase (0020,9241), "
        "NominalPercentageOfRespiratoryPhase (0020,9245), those that its slices share",
    ),
    Column("manufacturer", _TEXT, "Manufacturer (0008,0070)"),
    Column("manufacturer_model", _TEXT, "ManufacturerModelName (0008,1090)"),
    Column("kvp", _REAL, "KVP (0018,0060), kV; null if slices differ"),
    Column(
        "contrast_agent",
        _TEXT,
        "ContrastBolusAgent (0018,0010), as written, or in enhanced CT the meanings of ContrastBolusAgentSequence "
        "(0018,0012); several are joined by a semicolon; null if no slice names one, "
        "which does not prove that there was none. Contrast raises HU of vessels and lesions: compare like with like",
    ),
    Column("convolution_kernel", _TEXT, "ConvolutionKernel (0018,1210)"),
    Column("slice_thickness_mm", _REAL, "SliceThickness (0018,0050); never used as spacing"),
)
_QC = (Column("qc_flags", _TEXTS, "findings about the series; an empty list if there are none (see docs/tables.md)"),)
_VOLUMES = (
    Column("lung_volume_ml", _REAL, "both lungs, with vessels and lesions, without trachea and main bronchi, mL"),
    Column("ggo_volume_ml", _REAL, "ground-glass opacity inside the lungs, mL"),
    Column("consolidation_volume_ml", _REAL, "consolidation inside the lungs, mL"),
    Column("opacity_volume_ml", _REAL, "ground-glass opacity plus consolidation, mL"),
)
_PERCENTS = (
    Column("ggo_pct", _REAL, "100 x ground-glass opacity / lung"),
    Column("consolidation_pct", _REAL, "100 x consolidation / lung"),
    Column("po_pct", _REAL, "percentage of opacity (Chaganti 2020): 100 x (ground-glass + consolidation) / lung"),
)
_SIDES = tuple(
    column
    for side in SIDES
    for column in (
        Column(f"lung_{side}_volume_ml", _REAL, f"the patient's {side} lung, mL"),
        Column(f"opacity_{side}_volume_ml", _REAL, f"opacity in the patient's {side} lung, mL"),
        Column(f"po_{side}_pct", _REAL, f"100 x opacity / lung, the patient's {side} lung"),
    )
)
_ZONES = tuple(
    Column(
        f"po_{side}_{zone}_pct",
        _REAL,
        f"100 x opacity / lung in the {zone} third by height of the {side} lung; null if that lung has under 3 slices, "
        "or if the first or last slice holds over half its largest area: its height was not scanned",
    )
    for side in SIDES
    for zone in ZONES
)

_ZONE_SCORE = Column(
    "zone_score",
    _INT,
    "0 to 24: sum over the six zones of 0 (< 1 % opacity), 1 (< 25 %), 2 (< 50 %), 3 (< 75 %) or 4 (>= 75 %), the "
    "bands by which Bernheim et al. (Radiology 2020) score lobes, and other readers six zones. Zones are thirds by "
    "height (a slice belongs to the third that holds its middle) instead of being divided at the carina and the lower "
    "pulmonary vein. This is not the lobar 0 to 25 severity score, which needs lobes. Null unless all six zones hold "
    "lung",
)
_HU = tuple(
    column
    for region, nothing in (("lesion", "; null without lesion"), ("lung", ", lesions included"))
    for column in (
        Column(f"{region}_mean_hu", _REAL, f"mean HU of all {region} voxels{nothing}"),
        *(
            Column(
                f"{region}_p{q}_hu",
                _REAL,
                f"{q}th percentile of HU of all {region} voxels (lowest HU that {q} % of them do not exceed){nothing}",
            )
            for q in PERCENTILES
        ),
    )
)
_LESIONS = (
    Column(
        "lesion_count",
        _INT,
        f"number of lesions of at least {MIN_LESION_ML} mL: voxels of either class that touch by face, edge or corner "
        "are one lesion; null for a single slice",
    ),
    Column("largest_lesion_volume_ml", _REAL, "volume of the largest of these lesions, mL; null if there is none"),
)
_DOUBT = (
    Column(
        "confidence",
        _REAL,
        "mean discriminator confidence over lesion pixels, 0 to 1 (computed from probabilities that include the "
        "model's class offsets); a low value does not mean a worse outline (model card). Null without lesion, or "
        "for a model of phase 1, in which the discriminator does not learn",
    ),
    Column(
        "lung_entropy",
        _REAL,
        "mean over lung pixels of the entropy of the class probabilities (class offsets included) divided by log 3: "
        "0 means certain, 1 all classes equally likely; it rises with the extent of lesions",
    ),
    Column(
        "flip_disagreement_pct",
        _REAL,
        "100 x the share of pixels whose class differs between the slice and its mirror image, among the lung pixels "
        "that are lesion in either. Of the three measures of doubt the one that tells errors: the higher, the less the "
        "outline is to be trusted (model card). Null without lesion, or if mirror images were not used",
    ),
)

_SERIES_KEY = Column(
    "series_key", _TEXT, "name of the series in masks.zarr and pictures/: a hash of its UID and volume number"
)

MANIFEST: Final = TableSchema(
    name="manifest",
    version=9,
    row="one series found in the cohort, or one volume of a series that holds several",
    columns=(
        *_PATIENT,
        _TIME[0],
        *_SERIES,
        _VOLUME,
        Column("series_description", _TEXT, "SeriesDescription (0008,103E)"),
        Column(
            "body_part",
            _TEXT,
            "BodyPartExamined (0018,0015); where an enhanced CT lacks it, the meaning of its frames' "
            "AnatomicRegionSequence (0008,2218); several are joined by a semicolon",
        ),
        Column("modality", _TEXT, "Modality (0008,0060)"),
        Column("sop_class_uid", _TEXT, "SOPClassUID (0008,0016)"),
        Column("image_type", _TEXTS, "ImageType (0008,0008)"),
        Column(
            "orientation", _TEXT, "axial, coronal, sagittal, oblique or mixed, from ImageOrientationPatient (0020,0037)"
        ),
        *_ACQUISITION,
        Column("n_files", _INT, "files of the volume, copies included"),
        Column("n_slices", _INT, "slices left after copies are dropped"),
        Column("n_duplicates", _INT, "files dropped as copies of others"),
        Column("extent_mm", _REAL, "distance from the first to the last slice centre; null if not one stack"),
        Column(
            "lowest_z_mm",
            _REAL,
            "z of ImagePositionPatient (0020,0032) of the lowest slice; null if not axial",
        ),
        Column("highest_z_mm", _REAL, "z of ImagePositionPatient of the highest slice; null if not axial"),
        Column("rows", _INT, "Rows (0028,0010)"),
        Column("columns", _INT, "Columns (0028,0011)"),
        *_SPACING,
        *_QC,
        Column("repairs", _TEXTS, "repairs made on reading because --repair asked for them: untilt, resample"),
        Column(
            "decision",
            _TEXT,
            "selected, alternative (another series of its study is selected), excluded (by --select) or skipped",
        ),
        Column("reason", _TEXT, "why it is not selected; null for a selected series"),
        _SERIES_KEY,
        Column("files", _TEXTS, "paths relative to the cohort, in slice order; a multi-frame file once for each frame"),
        Column("frames", pl.List(pl.Int64()), "frame number, from 1, of each slice of multi-frame files; else empty"),
        Column(
            "fingerprint",
            _TEXT,
            "hash of each slice's file (path, size, modification time), UIDs, position, rescale: shows changed input",
        ),
    ),
)

BURDEN: Final = TableSchema(
    name="burden",
    version=9,
    row="one series that was chosen for segmentation",
    never_null=("series_instance_uid", "series_key", "status", "qc_flags"),
    columns=(
        *_PATIENT,
        *_TIME,
        *_SERIES,
        _SERIES_KEY,
        Column("status", _TEXT, "ok, not_evaluable (readable, but burden cannot be measured) or failed"),
        Column("reason", _TEXT, "why the status is not ok; null if it is"),
        *_QC,
        Column("n_slices", _INT, "slices of the series; of a resampled series, those after resampling"),
        Column("n_lung_slices", _INT, "slices in which lung was found"),
        *_SPACING,
        *_ACQUISITION,
        *_VOLUMES,
        *_PERCENTS,
        Column(
            "high_opacity_volume_ml",
            _REAL,
            f"lesion voxels of at least {HIGH_OPACITY_HU} HU (our choice of threshold), mL",
        ),
        Column("pho_pct", _REAL, "percentage of high opacity: 100 x high opacity / lung (Chaganti 2020)"),
        *_HU,
        *_LESIONS,
        *_SIDES,
        *_ZONES,
        _ZONE_SCORE,
        *_DOUBT,
        Column(
            "noise_hu",
            _REAL,
            "image noise (global noise level, Christianson 2015): the most frequent standard deviation of HU in small "
            "squares of soft tissue, in up to 16 slices with lung, in steps of 2 HU. A square is five pixels wide, "
            "each of 1.5 mm (or the image's own pixel size if larger); finer pixels are averaged to 1.5 mm first, so "
            "the value is below their own noise. Null if too little soft tissue is in view",
        ),
        Column("lung_method", _TEXT, "name and version of the lung segmentation"),
        Column("model_sha256", _TEXT, "SHA-256 of the model file"),
        Column("device", _TEXT, "device that ran the network: cpu or cuda"),
        Column("precision", _TEXT, "precision of the network's arithmetic: bfloat16 or float32"),
        Column("runtime_s", _REAL, "seconds from reading the series to its finished masks"),
    ),
)

SLICES: Final = TableSchema(
    name="slices",
    version=5,
    row="one slice of a series whose status is ok",
    columns=(
        *_SERIES,
        _SERIES_KEY,
        Column("slice_index", _INT, "z index in the mask; 0 is nearest the feet"),
        Column(
            "sop_instance_uid",
            _TEXT,
            "SOPInstanceUID (0008,0018); of a resampled series that of the nearest slice in the files: it may repeat",
        ),
        Column(
            "position_mm",
            _REAL,
            "position along the slices' normal, mm, on the even grid of the masks; where spacing varies within its "
            "tolerance (5 % + 0.1 mm), the file's own position differs by the sum of these deviations",
        ),
        Column("lung_area_mm2", _REAL, "area of lung, mm2"),
        Column("ggo_area_mm2", _REAL, "area of ground-glass opacity inside the lungs, mm2"),
        Column("consolidation_area_mm2", _REAL, "area of consolidation inside the lungs, mm2"),
    ),
)

TIMELINE: Final = TableSchema(
    name="timeline",
    version=7,
    row="one patient at one study date",
    columns=(
        *_PATIENT,
        *_TIME,
        Column(
            "days_since_onset", _INT, "days from onset_date of the clinical table to study_date; negative before it"
        ),
        Column("series_instance_uid", _TEXT, "series that represents the date (rule: see docs/tables.md)"),
        _SERIES_KEY,
        Column("n_series", _INT, "number of chosen series on that date (for a row without a date: in that study)"),
        Column("status", _TEXT, "status of the series that represents the date"),
        Column("evaluable", pl.Boolean(), "whether the row counts for changes, first, last and peak"),
        *_QC,
        *_VOLUMES,
        *_PERCENTS,
        Column("delta_po_pct", _REAL, "po_pct minus that on the first evaluable date, percentage points"),
        Column("delta_opacity_volume_ml", _REAL, "opacity_volume_ml minus that on the first evaluable date, mL"),
    ),
)

PATIENTS: Final = TableSchema(
    name="patients",
    version=8,
    row="one patient with a chosen series (manifest.parquet has the others)",
    columns=(
        *_PATIENT,
        Column("n_timepoints", _INT, "study dates with a chosen series"),
        Column("n_evaluable", _INT, "study dates that are evaluable in the timeline"),
        Column("first_date", _DATE, "earliest study date"),
        Column("last_date", _DATE, "latest study date"),
        Column("onset_date", _DATE, "onset of symptoms, from the clinical table"),
        Column("first_evaluable_date", _DATE, "first study date that is evaluable in the timeline"),
        Column("first_po_pct", _REAL, "po_pct at first_evaluable_date"),
        Column("last_evaluable_date", _DATE, "last study date that is evaluable in the timeline"),
        Column("last_po_pct", _REAL, "po_pct at last_evaluable_date"),
        Column("peak_po_pct", _REAL, "highest po_pct of the evaluable dates"),
        Column("days_to_peak", _INT, "days from the earliest study date to the peak"),
        Column("onset_to_peak_days", _INT, "days from onset_date to the peak"),
        Column("delta_po_pct", _REAL, "last_po_pct - first_po_pct, percentage points; null with one evaluable date"),
        Column("delta_opacity_volume_ml", _REAL, "the same for opacity_volume_ml, mL"),
        Column("qc_flags", _TEXTS, "flags of the patient's rows in the timeline, each listed once"),
    ),
)

CLINICAL: Final = TableSchema(
    name="clinical",
    version=1,
    row="one patient of the table last given to `report --clinical`",
    columns=(*_PATIENT, Column("onset_date", _DATE, "onset of symptoms")),
    never_null=("patient_id",),
)

TRUTH: Final = TableSchema(
    name="truth",
    version=5,
    row="one series of a synthetic cohort",
    columns=(*_PATIENT, *_TIME, *_SERIES, *_VOLUMES, *_PERCENTS),
)

FILES: Final = TableSchema(
    name="files",
    version=5,
    row="one file below the cohort's folder (one row per volume if its frames form several)",
    columns=(
        Column("path", _TEXT, "path relative to the cohort"),
        Column("went_to", _TEXT, "selected, alternative, excluded or skipped (as its series is), copy, or no series"),
        Column("series_key", _TEXT, "series the file belongs to; null for copies and for files in no series"),
        Column("reason", _TEXT, "why the file is not segmented; null for a file of a selected series"),
    ),
)

QUIRKS: Final = TableSchema(
    name="quirks",
    version=5,
    row="one volume, or group of other files, among the DICOM oddities that `sample --quirks` writes",
    columns=(
        Column("quirk", _TEXT, "name of the oddity and of its folder below dicom/"),
        Column("meaning", _TEXT, "what is odd"),
        Column("repair", _TEXTS, "values of --repair for which the row holds; an empty list for the defaults"),
        Column("decision", _TEXT, "expected decision in the manifest, or `copy` or `no series`"),
        Column("reason", _TEXT, "text that the reason must contain; null if there must be none, or any will do"),
        Column("status", _TEXT, "expected status of a selected series after decoding: ok, not_evaluable or failed"),
        Column("qc_flags", _TEXTS, "expected flags"),
        Column("n_slices", _INT, "slices in the files; null if not stated"),
        Column("lung_volume_ml", _REAL, "volume of voxels of -900 to -800 HU, mL; null if not stated or not known"),
        Column(
            "tolerance_pct", _REAL, "allowed deviation of that volume; 0 (but for rounding) if nothing is resampled"
        ),
        Column("files", _TEXTS, "paths relative to dicom/, sorted"),
    ),
)

OUTPUT_TABLES: Final = (MANIFEST, FILES, BURDEN, SLICES, TIMELINE, PATIENTS, CLINICAL)
"""Tables in an output folder of ``infer``."""
TABLES: Final = (*OUTPUT_TABLES, TRUTH, QUIRKS)
