"""The pictures of a report. No identifier is drawn."""

import io
from typing import Final

import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_PANELS: Final = (
    ("po_pct", "Opacity, % of the lung"),
    ("ggo_pct", "Ground-glass opacity, % of the lung"),
    ("consolidation_pct", "Consolidation, % of the lung"),
)
_MOST_COLOURS: Final = 10
_LEAST_TOP_PCT: Final = 5.0
"""The axis reaches at least so far, so that noise near zero does not look like a course."""


def trajectories_png(timeline: pl.DataFrame) -> bytes:
    """Return a picture of every patient's burden over the days since baseline, encoded as PNG.

    Parameters
    ----------
    timeline
        Schema ``TIMELINE``. Rows without burden, date or patient identifier are not drawn, nor areas of single slices
        among volumes; a line joins what was measured. Up to 10 patients have a colour each, in the order of the
        patients table; more are drawn alike.
    """
    # The figure is made without pyplot, whose global state has no place in a library.
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    people = list(dict.fromkeys(timeline["patient_id"].drop_nulls()))
    for axes, (column, title) in zip(figure.subplots(1, len(_PANELS), sharex=True), _PANELS, strict=True):
        _draw(axes, timeline, people, column)
        axes.set(title=title, xlabel="days since baseline")
        axes.set_ylim(0, max(_LEAST_TOP_PCT, axes.get_ylim()[1]))
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(axes: Axes, timeline: pl.DataFrame, people: list[str], column: str) -> None:
    few = len(people) <= _MOST_COLOURS
    # What has no change takes no part: not measured, without a date, or an area among volumes.
    measured = timeline.filter(pl.col(column).is_not_null() & pl.col("delta_po_pct").is_not_null())
    by_person = measured.partition_by("patient_id", as_dict=True)
    for number, person in enumerate(people, start=1):
        rows = by_person.get((person,))
        if rows is None:
            continue
        style = {"color": f"C{number - 1}", "label": str(number)} if few else {"color": "C0", "alpha": 0.4}
        axes.plot(rows["days_since_baseline"].to_list(), rows[column].to_list(), marker="o", markersize=4, **style)
    if few and axes.lines:
        axes.legend(title="patient", fontsize="small", title_fontsize="small")
