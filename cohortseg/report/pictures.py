"""The pictures of a report. No identifier is drawn."""

import math
from typing import Final

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cohortseg.pages import figure_png, own_style

_PANELS: Final = (
    ("po_pct", "Opacity, % of the lung"),
    ("ggo_pct", "Ground-glass opacity, % of the lung"),
    ("consolidation_pct", "Consolidation, % of the lung"),
)
_PANEL_IN: Final = 4.0
_BASELINE: Final = "days_since_baseline"
_CLOCKS: Final = {_BASELINE: "days since baseline", "days_since_onset": "days since onset of symptoms"}
_MOST_COLOURS: Final = 10
_LEAST_TOP_PCT: Final = 5.0
"""The axis reaches at least this far, so that noise near zero does not look like a course."""


@own_style()
def trajectories_png(timeline: pl.DataFrame) -> bytes:
    """Return a picture of every patient's burden over time, encoded as PNG.

    Days are counted from the baseline; where an onset is known, a second row of panels counts them from there.

    Parameters
    ----------
    timeline
        Schema ``TIMELINE``. Rows without burden, date or patient identifier are not drawn, nor areas of single slices
        among volumes; a line joins what was measured. Up to 10 patients have a colour each, in the order of the
        patients table; more are drawn alike.
    """
    clocks = [clock for clock in _CLOCKS if timeline[clock].count() or clock == _BASELINE]
    height = _PANEL_IN * len(clocks)
    figure = Figure(figsize=(13, height))  # margins by hand: finding them takes longer than drawing
    figure.subplots_adjust(0.04, 0.55 / height, 0.94, 1 - 0.35 / height, 0.12, 0.25)
    people = list(dict.fromkeys(timeline["patient_id"].drop_nulls()))
    panels = figure.subplots(len(clocks), len(_PANELS), sharex="row", sharey="col", squeeze=False)
    for row, clock in zip(panels, clocks, strict=True):
        for axes, (column, title) in zip(row, _PANELS, strict=True):
            _draw(axes, timeline, people, clock, column)
            axes.set(title=title, xlabel=_CLOCKS[clock])
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
    lines = {line.get_label(): line for axes in panels.flat for line in axes.lines}
    if len(people) <= _MOST_COLOURS and lines:
        numbers = sorted(lines, key=lambda label: int(str(label)))
        named = [lines[number] for number in numbers]
        figure.legend(named, numbers, title="patient", loc="center right", fontsize="small", title_fontsize="small")
    for axes in panels[0]:
        axes.set_ylim(0, max(_LEAST_TOP_PCT, axes.get_ylim()[1]))
    return figure_png(figure)


def _draw(axes: Axes, timeline: pl.DataFrame, people: list[str], clock: str, column: str) -> None:
    few = len(people) <= _MOST_COLOURS
    # Rows without a change are not drawn: not measured, without a date, or an area among volumes.
    measured = timeline.filter(pl.all_horizontal(pl.col(clock, column, "delta_po_pct").is_not_null()))
    by_person = measured.select("patient_id", clock, column).partition_by("patient_id", as_dict=True, include_key=False)
    courses = [(number, by_person[person,]) for number, person in enumerate(people, 1) if (person,) in by_person]
    if few:
        for number, rows in courses:
            axes.plot(
                *map(pl.Series.to_list, rows), marker="o", markersize=4, color=f"C{number - 1}", label=str(number)
            )
    elif courses:  # in one line with gaps: thousands of lines take seconds
        gap = pl.DataFrame(schema=courses[0][1].schema).clear(1)
        rows = pl.concat([part for _, rows in courses for part in (rows, gap)]).cast(pl.Float64).fill_null(math.nan)
        axes.plot(*map(pl.Series.to_list, rows), marker="o", markersize=4, color="C0", alpha=0.4)
