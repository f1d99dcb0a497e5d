"""A whole synthetic cohort: patients over time as DICOM, with the truth as a table and as masks.

::

    OUT/dicom/SYN-001/20200305/0001.dcm ...   CT Image Storage, one file per slice
    OUT/truth.parquet                         one row per series
    OUT/truth/<series_key>.npz                labels uint8, lungs bool, both (Z, Y, X), z rising to the head

The truth is exact by construction: a voxel is lung where at least half of it is, GGO where more than half of its tissue
has turned into lesion, consolidation where more than half has turned into consolidation. Vessels and airways that run
through a lesion belong to it. Volumes are voxel counts times the voxel's size in the DICOM headers.
"""

from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cohortseg.config import SampleConfig
from cohortseg.errors import ConfigError, StoreError
from cohortseg.identity import series_key
from cohortseg.labels import CONSOLIDATION, GGO
from cohortseg.progress import Report
from cohortseg.store.files import store_errors, visible_files
from cohortseg.store.schemas import TRUTH
from cohortseg.store.tables import table_from_rows, write_table
from cohortseg.synthetic.dicom_files import SeriesHeader, write_series
from cohortseg.synthetic.fields import Floats
from cohortseg.synthetic.phantom import Patient, Section, draw_patient, draw_section, lesion_limits
from cohortseg.synthetic.scanner import scanned
from cohortseg.synthetic.tissue import body_center_y, body_half_axes

MILDEST: Final = 0.03
WORST: Final = 0.38
"""Fraction of the lungs that is ill at the peak of the mildest and of the worst disease."""
_EPOCH = date(2020, 3, 2)
_THICKEST_MM = 5.0
_LARGEST_FIELD_MM = 420.0


def write_cohort(out: Path, config: SampleConfig, report: Report) -> Path:
    """Write a cohort and its truth; the same configuration and versions give the same bytes.

    Parameters
    ----------
    out
        Folder to fill; it is created, or must be empty.
    config
        How many patients, dates, slices and pixels, and the seed.
    report
        Called with the number of series done, their total, and a text.

    Returns
    -------
    Path
        The truth table, ``out/truth.parquet``.

    Raises
    ------
    ConfigError
        If ``out`` is a file or holds anything.
    StoreError
        If something cannot be written.
    """
    empty_folder(out)
    with store_errors(out, "cannot be written"):
        (out / "truth").mkdir()
    total = sum(dates_of(config, index) for index in range(config.patients))
    report(0, total, "")
    rows: list[dict[str, Any]] = []
    for index in range(config.patients):
        patient, scan_days = draw_cohort_patient(config, index)
        for timepoint in range(len(scan_days)):
            rows.append(_write_timepoint(out, config, index, timepoint, patient, scan_days))
            report(len(rows), total, "series")
    path = out / "truth.parquet"
    write_table(path, table_from_rows(rows, TRUTH), TRUTH, {"sample": asdict(config)})
    return path


def empty_folder(out: Path) -> None:
    """Create a folder, or check that it is empty.

    Raises
    ------
    ConfigError
        If it is a file or holds anything.
    StoreError
        If it cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = bool(visible_files(out))
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{out}: is a file; name a folder that is new or empty") from error
    except OSError as error:
        raise StoreError(f"{out}: cannot be written: {error}") from error
    if occupied:
        raise ConfigError(
            f"{out}: is not empty (a sample that was broken off, perhaps); name a folder that is new or empty, so that "
            "nothing is overwritten"
        )


def dates_of(config: SampleConfig, index: int) -> int:
    """Return the number of dates at which a patient is scanned: one fewer for the first patient, but at least one."""
    return max(1, config.timepoints - 1) if index == 0 else config.timepoints


def severity_of(config: SampleConfig, index: int) -> float:
    """Return the fraction of a patient's lungs that is ill at the peak; 0 for every third patient.

    The others are spread evenly, on a logarithmic scale, between `MILDEST` and `WORST`, however many there are.
    """
    if index % 3 == 2:
        return 0.0
    start = np.random.default_rng([config.seed, 0]).uniform()
    place = (start + 0.61803398875 * index) % 1.0  # the golden ratio: every new value falls into the largest gap
    return float(MILDEST * (WORST / MILDEST) ** place)


def draw_cohort_patient(config: SampleConfig, index: int) -> tuple[Patient, list[int]]:
    """Return a patient of the cohort, and the days of the scans, counted from the first."""
    rng = np.random.default_rng([config.seed, 1, index])
    patient = draw_patient(rng, severity_of(config, index))
    number = dates_of(config, index)
    # Few dates lie about a week apart; many crowd into the five weeks of the disease, but no two share a day.
    step = max(1, round(min(7.0, 35.0 / number)))
    jitter = rng.integers(0, max(1, step // 2), number)
    return patient, [0] + [step * k + int(jitter[k]) for k in range(1, number)]


def _write_timepoint(
    out: Path, config: SampleConfig, index: int, timepoint: int, patient: Patient, scan_days: list[int]
) -> dict[str, Any]:
    """Write one series with its masks and return its row of the truth table."""
    rng = np.random.default_rng([config.seed, 2, index, timepoint])
    header = _header(config, index, patient, rng, scan_days[timepoint], timepoint)
    sections, volume_hu = _draw_series(config, patient, header, scan_days[timepoint], rng)
    labels = np.stack([section.labels for section in sections])
    lungs = np.stack([section.lungs for section in sections])
    write_series(out / "dicom" / header.patient_id / header.study_date.strftime("%Y%m%d"), header, volume_hu)
    path = out / "truth" / f"{series_key(header.series_instance_uid)}.npz"
    with store_errors(path, "cannot be written"):
        np.savez_compressed(path, labels=labels, lungs=lungs)
    return {
        "patient_id": header.patient_id,
        "study_date": header.study_date,
        "days_since_baseline": scan_days[timepoint],
        "timepoint": timepoint,
        "study_instance_uid": header.study_instance_uid,
        "series_instance_uid": header.series_instance_uid,
        **truth_amounts(labels, lungs, header.spacing_mm),
    }


def truth_amounts(
    labels: NDArray[np.uint8], lungs: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> dict[str, float | None]:
    """Return volumes in mL and percents of the lung from masks.

    Parameters
    ----------
    labels
        (Z, Y, X) uint8: 0, 1 GGO, 2 consolidation.
    lungs
        (Z, Y, X) bool.
    spacing_mm
        Spacing along z, y, x.

    Returns
    -------
    dict
        Columns of the truth table. Volumes are None for a single slice, which has no extent along z; percents are None
        where there is no lung.
    """
    counts = {"lung": int(lungs.sum()), "ggo": int((labels == GGO.value).sum())}
    counts["consolidation"] = int((labels == CONSOLIDATION.value).sum())
    counts["opacity"] = counts["ggo"] + counts["consolidation"]
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0 if len(labels) > 1 else None
    amounts: dict[str, float | None] = {
        f"{name}_volume_ml": None if voxel_ml is None else count * voxel_ml for name, count in counts.items()
    }
    for column, name in (("ggo_pct", "ggo"), ("consolidation_pct", "consolidation"), ("po_pct", "opacity")):
        amounts[column] = 100.0 * counts[name] / counts["lung"] if counts["lung"] else None
    return amounts


def _header(
    config: SampleConfig, index: int, patient: Patient, rng: np.random.Generator, day: int, timepoint: int
) -> SeriesHeader:
    """Return the header of a series: identity, and a geometry that is exact in the decimals that DICOM stores."""
    anatomy = patient.anatomy
    breath = rng.uniform(0.975, 1.015)  # no two breaths are held at the same depth
    field_mm = min(_LARGEST_FIELD_MM, 2.0 * body_half_axes(anatomy)[0] + 25.0)
    pixel_mm = round(field_mm / config.size, 4)
    step_mm = round(breath * anatomy.height_mm / config.slices, 2)
    # The patient never lies at the same place of the table.
    table_x, table_y, table_z = (round(float(rng.uniform(-12.0, 12.0)), 1) for _ in range(3))
    corner = pixel_mm * (config.size - 1) / 2.0
    first = (table_x - corner, table_y + body_center_y(anatomy) - corner, table_z - 900.0 + step_mm / 2.0)
    return SeriesHeader(
        patient_id=f"SYN-{index + 1:03d}",
        sex="FM"[index % 2],
        birth_date=date(1950 + (index * 7) % 40, 1 + index % 12, 15),
        study_date=_EPOCH + timedelta(days=3 * (index % 60) + day),
        study_number=timepoint + 1,
        uid_seed=f"cohortseg/sample/{sorted(asdict(config).items())}/{index}/{timepoint}",
        spacing_mm=(step_mm, pixel_mm, pixel_mm),
        first_position_mm=first,
        slice_thickness_mm=min(_THICKEST_MM, step_mm),
    )


def _draw_series(
    config: SampleConfig, patient: Patient, header: SeriesHeader, day: int, rng: np.random.Generator
) -> tuple[list[Section], NDArray[np.int16]]:
    """Return the slices with their truth, from the feet up, and the scanned volume (Z, Y, X) in HU."""
    step_mm, pixel_mm, _ = header.spacing_mm
    along = (np.arange(config.size, dtype=np.float64) - (config.size - 1) / 2.0) * pixel_mm
    # The patient is off the middle of the field of view by a few millimetres, differently each time.
    shift_x, shift_y = rng.uniform(-6.0, 6.0, 2)
    center = (float(shift_x), float(body_center_y(patient.anatomy) + 8.0 + shift_y))
    xs: Floats = along + center[0]
    ys: Floats = along + center[1]
    x, y = np.meshgrid(xs, ys)
    limits = lesion_limits(patient, day)
    noise_hu = rng.uniform(15.0, 28.0)
    breath = step_mm * config.slices / patient.anatomy.height_mm
    sections, scans = [], []
    for index in range(config.slices):
        # A breath stretches the lungs along z only: the same tissue is found at the same part of their height.
        z = (index + 0.5) * step_mm / breath
        section = draw_section(patient, xs, ys, z, header.slice_thickness_mm, limits)
        sections.append(section)
        scans.append(scanned(section.hu, x, y, noise_hu, center, rng))
    return sections, np.stack(scans)
