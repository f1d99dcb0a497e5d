"""One self-contained HTML page: no script, no identifier; patients are numbered as in patients.parquet."""

import html
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import polars as pl

from cohortseg.pages import Link, image_html, number_text, page_html, smaller_jpeg, table_html
from cohortseg.processors import num_processors

_PATIENT_COLUMNS: Final = {
    "n_timepoints": "dates",
    "n_evaluable": "measured",
    "first_po_pct": "opacity first, %",
    "last_po_pct": "last, %",
    "peak_po_pct": "peak, %",
    "days_to_peak": "days to peak",
    "onset_to_peak_days": "onset to peak, days",
    "delta_po_pct": "change, points",
    "delta_opacity_volume_ml": "change, mL",
}
_SERIES_COLUMNS: Final = {
    "days_since_baseline": "day",
    "lung_volume_ml": "lung, mL",
    "ggo_volume_ml": "GGO, mL",
    "consolidation_volume_ml": "consolidation, mL",
    "ggo_pct": "GGO, %",
    "consolidation_pct": "consolidation, %",
    "po_pct": "opacity, %",
    "flip_disagreement_pct": "mirror image differs, %",
}
_MOST_PICTURES: Final = 40


def report_html(
    burden: pl.DataFrame, timeline: pl.DataFrame, patients: pl.DataFrame, trajectories: bytes, pictures: Path
) -> str:
    """Return the page.

    Parameters
    ----------
    burden, timeline, patients
        The tables of that name.
    trajectories
        PNG.
    pictures
        Folder of the overlay pictures, ``<series_key>.png``; those of the first 40 series that have one are put in.
    """
    pictured = [key for key in burden["series_key"] if (pictures / f"{key}.png").is_file()]
    shown, num_more = pictured[:_MOST_PICTURES], len(pictured[_MOST_PICTURES:])
    numbers = {person: number for number, person in enumerate(patients["patient_id"], start=1) if person is not None}
    counts = burden["status"].value_counts().sort("count", "status", descending=[True, False]).rows()
    parts = [
        "<p><strong>Research software, not a medical device.</strong> Patients are numbered by their row in "
        "patients.parquet (a dash: without identifier), series named by the first digits of series_key. Another dash "
        "means not measured.</p>",
        f"<p>{_count_text(patients, timeline)}, {len(burden)} series: "
        f"{html.escape(', '.join(f'{count} {status}' for status, count in counts))}"
        f"{'.' if set(burden['status']) <= {'ok'} else ' (burden.parquet says why, as reason).'}</p>",
        f"<h2>Trajectories</h2>{image_html(trajectories, 'Burden of each patient over time')}",
        "<h2>Patients</h2>",
        table_html(("patient", *_PATIENT_COLUMNS.values()), _patient_rows(patients, numbers)),
        "<h2>Series</h2>",
        "<p>Of series of similar opacity, look first at those whose mirror image differs most (flip_disagreement_pct): "
        "there the outline of lesions is least certain.</p>",
        table_html(
            ("patient", "series", *_SERIES_COLUMNS.values(), "stands for its day", "status", "flags"),
            _series_rows(burden, numbers, timeline, set(shown)),
            num_text=3,
        ),
        *_figures(burden.filter(pl.col("series_key").is_in(shown)), numbers, pictures, num_more),
    ]
    return page_html("Lesion burden", parts)


def _count_text(patients: pl.DataFrame, timeline: pl.DataFrame) -> str:
    unnamed = patients["patient_id"].null_count()
    dated = timeline["study_date"].count()
    others = f" and {unnamed} studies without identifier" if unnamed else ""
    return f"{len(patients) - unnamed} patients{others}, {dated} time points"


def _patient_rows(patients: pl.DataFrame, numbers: dict[str, int]) -> Iterable[list[str]]:
    for row in patients.iter_rows(named=True):
        yield [_person(row, numbers), *(number_text(row[name]) for name in _PATIENT_COLUMNS)]


def _series_rows(
    burden: pl.DataFrame, numbers: dict[str, int], timeline: pl.DataFrame, shown: set[str]
) -> Iterable[list[str | Link]]:
    """Yield a row per series, with a link to its picture if it is shown.

    One that stands for its day has the flags of the timeline, some of them raised by other dates.
    """
    standing: dict[str, list[str]] = dict(timeline.select("series_key", "qc_flags").iter_rows())
    for row in burden.iter_rows(named=True):
        flags = ", ".join(standing.get(row["series_key"], row["qc_flags"]))
        values = (number_text(row[name]) for name in _SERIES_COLUMNS)
        stands = number_text(None)
        if row["study_date"] is not None:
            stands = "yes" if row["series_key"] in standing else "no"
        name = Link(_short(row), row["series_key"]) if row["series_key"] in shown else _short(row)
        yield [_person(row, numbers), name, *values, stands, row["status"], flags]


def _figures(shown: pl.DataFrame, numbers: dict[str, int], pictures: Path, num_more: int) -> Iterable[str]:
    """Yield the overlays of the rows ``shown``, and how many more there are."""
    rows = shown.rows(named=True)
    if rows:
        yield "<h2>Overlays</h2>"
    with ThreadPoolExecutor(num_processors()) as pool:
        jpegs = pool.map(_jpeg, (pictures / f"{row['series_key']}.png" for row in rows))
        for row, jpeg in zip(rows, jpegs, strict=True):
            day = number_text(row["days_since_baseline"])
            title = f"Patient {_person(row, numbers)}, day {day}, series {_short(row)}"
            yield f'<h3 id="{row["series_key"]}">{title}</h3>'
            if jpeg is None:
                yield "<p>This picture is damaged; remove it and run infer again.</p>"
            else:
                yield image_html(jpeg, title, "jpeg")
    if num_more:
        yield f"<p>{num_more} more in pictures/.</p>"


def _jpeg(path: Path) -> bytes | None:
    """Return a picture for the page; None if it is damaged."""
    try:
        return smaller_jpeg(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # what Pillow raises on damaged files
        return None


def _short(row: dict[str, Any]) -> str:
    return str(row["series_key"])[:8]


def _person(row: dict[str, Any], numbers: dict[str, int]) -> str:
    return str(numbers.get(row["patient_id"], "-"))
