"""From one row per series to one row per patient and date, and one row per patient. Pure functions of tables.

The baseline of a patient is the earliest study date among the chosen series. If a date has several series, one of them
stands for it. The following criteria choose it, in this order: ok before not ok; a plausible lung volume before an
implausible one, and that before none (a single slice); all of the lungs (at least 80 % of the most lung found that day;
implausible volumes are compared with each other) before part of them; series that are neither computed from several
energies, nor called a projection or an expiration, nor noisy before those that are; lungs that end within slices and
field of view before those that go on beyond one, and these before both; most slices with lung (where none was looked
for: most slices); smallest slice spacing; a soft kernel before an unknown one, and that before a sharp one; series UID.
Percents of single slices are of area: where a patient has volumes at any date, single slices are left out of changes,
first, last and peak. So are parts of the lungs, as a scan of the abdomen shows them, where a patient has whole lungs at
any date. A series without a study date is kept as a row of its own (one per study), with null in every column that
counts days and in every change. Series without a patient identifier are never combined into one patient: each study
counts as a patient, and where no study is named either, each series.
"""

from typing import Final

import polars as pl

from cohortseg import qc
from cohortseg.kernels import kernel_kind
from cohortseg.store.schemas import PATIENTS, TIMELINE

_PERSON: Final = "__person"
_UNDATED: Final = "__undated"
_EVALUABLE: Final = "evaluable"
_NUM_STUDIES: Final = "__num_studies"
_WHOLE_SHARE: Final = 0.8
"""A series that holds less than this part of the most lung found that day does not hold all of the lungs."""
LESS_SHARE: Final = 0.65
"""Severe disease and expiration mostly leave more than this part of a patient's lung volume."""
_PART_ML: Final = 800.0
"""Less lung than this is part of the lungs (the bases above an abdomen), gas, or the lungs of a child."""
_PART_SHARE: Final = 0.5
"""Less than this part of a patient's largest lung volume is part of the lungs, if it is cut or below `_PART_ML`."""
_UNLIKE: Final = (*qc.NOT_PLAIN, qc.EXPIRATION, qc.NOISY)
"""Flags of series whose percents are not those of a plain scan of the patient."""
_KERNELS: Final = ("soft", None, "sharp")
"""Kinds of kernels, those with the least noise in their percents first."""


def is_cut() -> pl.Expr:
    """Return the condition for burden rows of series whose first or last slice holds much lung."""
    return _has(qc.LUNG_CUT_AT_END_SLICE)


def is_narrow() -> pl.Expr:
    """Return the condition for burden rows of series whose field of view cuts the lungs."""
    return _has(qc.LUNG_CUT_BY_FIELD_OF_VIEW)


def is_little() -> pl.Expr:
    """Return the condition for burden rows of series with less lung than grown persons have."""
    return (pl.col("lung_volume_ml") < _PART_ML).fill_null(value=False)


def is_end_of_another_part() -> pl.Expr:
    """Return the condition for burden rows of series named after another part of the body, with lung at one end."""
    return is_cut() & _has(qc.OTHER_BODY_PART) & pl.col("lung_volume_ml").is_not_null()


def with_time(burden: pl.DataFrame) -> pl.DataFrame:
    """Return the burden table with ``days_since_baseline`` and ``timepoint`` filled in.

    Parameters
    ----------
    burden
        Columns of the burden table; the two time columns are overwritten. Both stay null where the study date or the
        patient is not known.
    """
    known = pl.col("study_date").is_not_null() & _text("patient_id").is_not_null()
    days = (pl.col("study_date") - pl.col("study_date").min().over("patient_id")).dt.total_days()
    rank = pl.col("study_date").rank("dense").over("patient_id") - 1
    return burden.with_columns(
        pl.when(known).then(days).cast(pl.Int64).alias("days_since_baseline"),
        pl.when(known).then(rank).cast(pl.Int64).alias("timepoint"),
    )


def timeline_table(burden: pl.DataFrame, clinical: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return the timeline table: one row per patient and study date, in order of patient and date.

    Parameters
    ----------
    burden
        The burden table; its time columns are recomputed.
    clinical
        The clinical table; None: no onset is known.

    Returns
    -------
    pl.DataFrame
        The columns of the timeline table. ``delta_*`` is the value minus that of the patient's first evaluable date
        (so 0 at that date), null where either was not measured.
    """
    return _timeline(burden, clinical).select(TIMELINE.polars_schema.names())


def patients_table(burden: pl.DataFrame, clinical: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return the patients table: one row per patient, in order of patient.

    Parameters
    ----------
    burden
        The burden table.
    clinical
        The clinical table; None: no onset is known.

    Returns
    -------
    pl.DataFrame
        The columns of the patients table. Only dated rows count as time points; the peak is the highest measured
        percentage, the earliest of equals.
    """
    rows = _timeline(burden, clinical)
    dated = pl.col("study_date").is_not_null()
    measured = rows.filter(_EVALUABLE)
    peak = measured.sort("po_pct", "study_date", descending=[True, False], nulls_last=True)
    every = rows.group_by(_PERSON, maintain_order=True).agg(
        pl.col("patient_id").first(),
        dated.sum().cast(pl.Int64).alias("n_timepoints"),
        pl.col(_EVALUABLE).sum().cast(pl.Int64).alias("n_evaluable"),
        pl.col("study_date").min().alias("first_date"),
        pl.col("study_date").max().alias("last_date"),
        pl.col("onset_date").first(),
        pl.col("qc_flags").list.explode().drop_nulls().unique().sort(),
    )
    burdens = measured.group_by(_PERSON, maintain_order=True).agg(
        pl.col("study_date").first().alias("first_evaluable_date"),
        pl.col("po_pct").first().alias("first_po_pct"),
        pl.col("study_date").last().alias("last_evaluable_date"),
        pl.col("po_pct").last().alias("last_po_pct"),
        pl.when(pl.len() > 1).then(pl.col("delta_po_pct").last()).alias("delta_po_pct"),
        pl.when(pl.len() > 1).then(pl.col("delta_opacity_volume_ml").last()).alias("delta_opacity_volume_ml"),
    )
    peaks = peak.group_by(_PERSON, maintain_order=True).agg(
        pl.col("po_pct").first().alias("peak_po_pct"),
        pl.col("days_since_baseline").first().alias("days_to_peak"),
        pl.col("days_since_onset").first().alias("onset_to_peak_days"),
    )
    joined = every.join(burdens, on=_PERSON, how="left").join(peaks, on=_PERSON, how="left").sort(_PERSON)
    return joined.select(PATIENTS.polars_schema.names())


def _timeline(burden: pl.DataFrame, clinical: pl.DataFrame | None) -> pl.DataFrame:
    """Return the timeline with all columns of the burden and clinical tables and the keys of :func:`_with_keys`."""
    return (
        with_time(burden)
        .pipe(_with_onset, clinical)
        .pipe(_with_keys)
        .pipe(_standing_for_their_dates)
        .with_columns(_evaluable().alias(_EVALUABLE))
        .with_columns(_flags_over_time().alias("qc_flags"))
        .with_columns(_change("po_pct", "delta_po_pct"), _change("opacity_volume_ml", "delta_opacity_volume_ml"))
    )


def _standing_for_their_dates(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the one series that stands for each person and date, in order of person and date."""
    keys = [_PERSON, "study_date", _UNDATED]
    implausible = _has(qc.LUNG_VOLUME_IMPLAUSIBLE)
    lung_ml = pl.col("lung_volume_ml")
    whole = (lung_ml >= _WHOLE_SHARE * lung_ml.max().over(*keys, implausible)).fill_null(value=False)
    # The criteria at the top of this module, in their order; the lowest value of each comes first.
    order = (
        pl.col("status") != "ok",
        lung_ml.is_null(),
        implausible,
        ~whole,
        pl.any_horizontal(_has(flag) for flag in _UNLIKE),
        is_cut().cast(pl.Int8) + is_narrow().cast(pl.Int8),
        -pl.coalesce("n_lung_slices", "n_slices", 0),
        "spacing_z_mm",
        pl.col("convolution_kernel").map_elements(_kernel_order, pl.Int64(), skip_nulls=False),
        "series_instance_uid",
        "series_key",
    )
    return (
        rows.with_columns(
            n_series=pl.len().over(keys).cast(pl.Int64),
            **{_NUM_STUDIES: pl.col("study_instance_uid").drop_nulls().n_unique().over(keys)},
        )
        .sort(order, nulls_last=True)
        .unique(subset=keys, keep="first", maintain_order=True)
        .sort(keys, nulls_last=True)
    )


def _kernel_order(kernel: str | None) -> int:
    return _KERNELS.index(kernel_kind(kernel))


def _has(flag: str) -> pl.Expr:
    return pl.col("qc_flags").list.contains(flag)


def _change(value: str, name: str) -> pl.Expr:
    """Return a value minus that of the person's first evaluable date, at evaluable dates."""
    change = pl.col(value) - pl.col(value).filter(_EVALUABLE).first().over(_PERSON)
    return pl.when(_EVALUABLE).then(change).alias(name)


def _with_onset(burden: pl.DataFrame, clinical: pl.DataFrame | None) -> pl.DataFrame:
    """Add ``onset_date`` and ``days_since_onset``."""
    if clinical is None:
        onset = burden.with_columns(pl.lit(None, pl.Date).alias("onset_date"))
    else:
        onset = burden.join(clinical, on="patient_id", how="left", maintain_order="left", validate="m:1")
    days = (pl.col("study_date") - pl.col("onset_date")).dt.total_days()
    return onset.with_columns(days.cast(pl.Int64).alias("days_since_onset"))


def _text(name: str) -> pl.Expr:
    """Return a text column in which the empty string is null."""
    return pl.when(pl.col(name).str.strip_chars() != "").then(pl.col(name))


def _evaluable() -> pl.Expr:
    """Return the condition for dated rows with a measured burden of the best kind that the patient has at any date.

    Kinds, the best first: whole lungs, parts of the lungs, areas.
    """
    measured = (pl.col("status") == "ok") & pl.col("po_pct").is_not_null() & pl.col("study_date").is_not_null()
    by_volume = measured & pl.col("opacity_volume_ml").is_not_null()
    lung_ml = pl.col("lung_volume_ml")
    most_ml = lung_ml.filter(by_volume & ~_has(qc.LUNG_VOLUME_IMPLAUSIBLE)).max().over(_PERSON)
    half = (lung_ml < _PART_SHARE * most_ml).fill_null(value=False)
    slab = _has(qc.PARTIAL_COVERAGE) & (lung_ml < LESS_SHARE * most_ml).fill_null(value=False)
    part = is_end_of_another_part() | (is_cut() & (is_little() | half | slab)) | (is_little() & half)
    rank = pl.when(by_volume & ~part).then(2).when(by_volume).then(1).when(measured).then(0)
    return (rank == rank.max().over(_PERSON)).fill_null(value=False)


def _flags_over_time() -> pl.Expr:
    """Return the flags of each row, with those of `qc.TIMELINE_FLAGS` that hold added."""
    plausible = ~_has(qc.LUNG_VOLUME_IMPLAUSIBLE)
    dated = pl.col("study_date").is_not_null()
    # Of and for all dates, also those that take no part in changes.
    most_ml = pl.col("lung_volume_ml").filter(dated & plausible).max().over(_PERSON)
    less = dated & (pl.col("lung_volume_ml") < LESS_SHARE * most_ml)
    scan = ("lung_volume_ml", "lung_mean_hu")
    figures = pl.when(dated).then(pl.struct(*scan))
    measured = pl.col("lung_mean_hu").is_not_null()
    same = measured & dated & figures.is_duplicated().over(_PERSON)
    same_of_others = measured & (pl.col(_PERSON).n_unique().over(scan) > 1)
    flags = pl.col("qc_flags")
    for name, holds in (
        (qc.SEVERAL_STUDIES, pl.col(_NUM_STUDIES) > 1),
        (qc.LESS_LUNG_THAN_OTHER_DATES, less.fill_null(value=False)),
        (qc.SAME_AS_OTHER_DATE, same),
        (qc.SAME_AS_OTHER_PATIENT, same_of_others),
    ):
        flags = pl.when(holds).then(flags.list.concat(pl.lit([name]))).otherwise(flags)
    return flags


def _with_keys(burden: pl.DataFrame) -> pl.DataFrame:
    """Add the person of a row (the patient, else the study) and, for undated rows, the study that keeps them apart."""
    patient = _text("patient_id")
    # A SeriesInstanceUID stands for a study that is not named; the prefix tells it from one that is.
    study = pl.coalesce(_text("study_instance_uid"), pl.lit("series ") + pl.col("series_instance_uid"))
    return burden.with_columns(
        # The prefix keeps an identifier and a UID apart and puts patients before unknown ones.
        pl.coalesce(pl.lit("0:") + patient, pl.lit("1:") + study).alias(_PERSON),
        pl.when(pl.col("study_date").is_null()).then(study).alias(_UNDATED),
    )
