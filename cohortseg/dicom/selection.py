"""Choice of the usable series to segment: by the user's rules, then one per study; the others get a reason."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Final

from cohortseg import qc
from cohortseg.config import ScanConfig
from cohortseg.dicom.names import names_attenuation_scan, names_expiration, names_other_parts
from cohortseg.dicom.select_rules import Rule, parse_rules
from cohortseg.dicom.series import (
    Decision,
    SeriesRecord,
)
from cohortseg.dicom.visits import visit_numbers
from cohortseg.kernels import kernel_kind

STUDY_COVERAGE_SHARE: Final = 0.8
"""A series shorter than this part of the longest of its study does not cover the chest."""
STACK_MM: Final = 60.0
STACK_SHARE: Final = 0.5
"""A series shorter than `STACK_MM`, or than this part of the longest, is a slab, or one place as a bolus arrives."""
LUNG_HEIGHT_MM: Final = 300.0
"""Lungs are seldom taller than this: a longer series covers no more of them."""
FIELD_SHARE: Final = 0.8
"""A field of view narrower than this part of the widest of its study shows the spine, the heart or one lung only."""
FIELD_MM: Final = 250.0
"""A field of view this wide can hold a slim chest; if it cuts the lungs, that shows in the pixels."""
_FARTHER_MM: Final = 15.0
"""A series that reaches beyond another by more than this shows something that the other does not."""
_FEW_APART: Final = 2
"""More single-slice series than this in one study, all alike, are probably slices of one scan."""
THIN_MM: Final = (1.55, 3.05, 5.05)
"""Slices within one of these classes count as equally thin."""
_BEFORE_DATES: Final = frozenset({"stack", "chest", "plain"})
"""Preferences that, at the head of the list, count for more than having a StudyDate."""


def select_series(records: Sequence[SeriesRecord], config: ScanConfig) -> list[SeriesRecord]:
    """Return all records with the final decision: selected, alternative, excluded or (as before) skipped.

    Parameters
    ----------
    records
        Decided by geometry and content: selected or skipped.
    config
        ``select`` and ``prefer`` are used.

    Raises
    ------
    ConfigError
        If a rule is not valid.
    """
    one_a_study, rules = parse_rules(config.select)
    decided = [_ruled(record, rules) for record in records]
    if one_a_study:
        decided = _replaced(decided, (_choose(visit, config.prefer) for visit in _studies(decided, {"selected"})))
    return _with_apart(decided)


def select_next(
    records: Sequence[SeriesRecord],
    config: ScanConfig,
    unmeasured: Collection[str],
    *,
    short: Collection[str] = (),
    narrow: Collection[str] = (),
) -> list[SeriesRecord]:
    """Return the same records, with the best alternative also selected where the series measured do not suffice.

    Parameters
    ----------
    records
        As returned by `select_series` or by this function.
    config
        ``prefer`` is used.
    unmeasured
        Keys of selected series that could not be measured.
    short, narrow
        Keys of measured series beyond whose end slices, or field of view, more lung may lie: only an alternative of
        the same kind that reaches farther is selected for them.
    """
    changed = []
    for visit in _studies(records, {"selected", "alternative"}):
        left = [record for record in visit if record.decision == "alternative"]
        measured = [record for record in visit if record.decision == "selected" and record.series_key not in unmeasured]
        if any(record.series_key not in short and record.series_key not in narrow for record in measured):
            continue
        if measured:
            left = [
                record
                for record in left
                if _is_of_their_kind(record, measured)
                and all(
                    (one.series_key in short and _is_longer(record, one))
                    or (one.series_key in narrow and _is_wider(record, one))
                    for one in measured
                )
            ]
            left = [record for record in left if not _is_unlike(record)] or left
        if not left:
            continue
        anew = _choose([replace(record, decision="selected", reason=None) for record in left], config.prefer)
        changed.append(
            [_flagged(record, qc.ANOTHER_FAILED) if record.decision == "selected" else record for record in anew]
        )
    return _with_apart(_replaced(records, changed))


def _is_of_their_kind(record: SeriesRecord, others: Sequence[SeriesRecord]) -> bool:
    """Return whether a stack may show the chest, is no projection, and an expiration only if one of the others is."""
    if _extent_mm(record) < STACK_MM or names_other_parts(record.series_description, record.body_part):
        return False
    breathed_out = any(names_expiration(one.series_description) for one in others)
    return qc.MAYBE_PROJECTION not in record.qc_flags and (
        breathed_out or not names_expiration(record.series_description)
    )


def _is_unlike(record: SeriesRecord) -> bool:
    return any(flag in qc.NOT_PLAIN for flag in record.qc_flags)


def _is_longer(record: SeriesRecord, other: SeriesRecord) -> bool:
    """Return whether a series reaches beyond the highest or the lowest slice of another."""
    if (
        record.lowest_z_mm is None
        or record.highest_z_mm is None
        or other.lowest_z_mm is None
        or other.highest_z_mm is None
    ):
        return False
    return (
        record.lowest_z_mm < other.lowest_z_mm - _FARTHER_MM or record.highest_z_mm > other.highest_z_mm + _FARTHER_MM
    )


def _is_wider(record: SeriesRecord, other: SeriesRecord) -> bool:
    return _width_mm(record) > _width_mm(other) + _FARTHER_MM


def _replaced(records: Sequence[SeriesRecord], changed: Iterable[Sequence[SeriesRecord]]) -> list[SeriesRecord]:
    """Return the records in their order, each replaced by its new version in ``changed``, if there is one."""
    now = {record.series_key: record for group in changed for record in group}
    return [now.get(record.series_key, record) for record in records]


def _flagged(record: SeriesRecord, flag: str) -> SeriesRecord:
    return record if flag in record.qc_flags else replace(record, qc_flags=(*record.qc_flags, flag))


def _studies(records: Sequence[SeriesRecord], decisions: Collection[Decision]) -> Iterator[list[SeriesRecord]]:
    """Yield the records with one of these decisions, grouped by study and visit."""
    studies: defaultdict[Hashable, list[SeriesRecord]] = defaultdict(list)
    for record in records:
        if record.decision in decisions:
            # Without a StudyInstanceUID it is not known which series belong together.
            study = record.study_instance_uid
            studies[(record.patient_id, study) if study is not None else record.series_key].append(record)
    for members in studies.values():
        numbers = visit_numbers(record.study_date for record in members)
        visits: defaultdict[int, list[SeriesRecord]] = defaultdict(list)
        for record in members:
            visits[numbers[record.study_date]].append(record)
        yield from visits.values()


def _ruled(record: SeriesRecord, rules: Sequence[Rule]) -> SeriesRecord:
    broken = next((rule for rule in rules if not rule.matches(getattr(record, rule.column))), None)
    if record.decision != "selected" or broken is None:
        return record
    return replace(record, decision="excluded", reason=f"does not match --select '{broken.text}'")


def _choose(members: Sequence[SeriesRecord], prefer: Sequence[str]) -> list[SeriesRecord]:
    """Return the series of one study with the best selected, and the others as its alternatives.

    A series without a StudyDate has no place in time, nor has one acquired on another date if others were not: those
    that have one and show the chest as well come first.
    """
    # The largest among those that may show a chest: a series of the abdomen can be longer.
    chests = [record for record in members if not names_other_parts(record.series_description, record.body_part)]
    largest = _Largest(
        extent_mm=min(LUNG_HEIGHT_MM, max(map(_extent_mm, chests or members))),
        width_mm=min(FIELD_MM, max(map(_width_mm, chests or members))),
    )
    ranks = {
        record.series_key: tuple(_PREFERENCES[name].rank(record, largest) for name in prefer) for record in members
    }
    num_before = sum(1 for _ in takewhile(_BEFORE_DATES.__contains__, prefer))

    agree = any(record.acquisition_date and qc.ACQUIRED_ON_ANOTHER_DATE not in record.qc_flags for record in members)

    def misdated(record: SeriesRecord) -> int:
        return 2 if record.study_date is None else int(agree and qc.ACQUIRED_ON_ANOTHER_DATE in record.qc_flags)

    def order(record: SeriesRecord) -> tuple[Any, ...]:
        rank = ranks[record.series_key]
        return rank[:num_before], misdated(record), rank

    best, *others = sorted(members, key=lambda record: (order(record), record.series_instance_uid, record.volume))

    def why(record: SeriesRecord) -> str:
        if order(record)[:1] == order(best)[:1] and misdated(record) != misdated(best):
            return "it has no StudyDate" if record.study_date is None else "it was acquired on another date"
        for name, one, chosen in zip(prefer, ranks[record.series_key], ranks[best.series_key], strict=True):
            if one != chosen:
                return _PREFERENCES[name].reason(record, best)
        return "equal in all preferences; the first UID is taken"

    tied = any(order(record) == order(best) for record in others)
    decided = [_flagged(best, qc.CHOSEN_BY_UID) if tied else best]
    for record in members:
        if record is not best:
            reason = f"alternative to series {best.series_key} of the same study: {why(record)}"
            decided.append(replace(record, decision="alternative", reason=reason))
    if len({record.study_date for record in members} - {None}) > 1:
        decided = [_flagged(record, qc.CONSECUTIVE_DAYS) for record in decided]
    return decided


def _with_apart(records: Sequence[SeriesRecord]) -> list[SeriesRecord]:
    """Return the records, flagging single slices that may belong to one scan of a study, or of a patient and date."""
    single = [record for record in records if record.n_slices == 1 and record.decision in ("selected", "alternative")]
    counts: Counter[Hashable] = Counter()
    for record in single:
        counts.update(_scans(record))
    apart = {record.series_key for record in single if any(counts[scan] > _FEW_APART for scan in _scans(record))}
    return [
        _flagged(record, qc.SLICES_APART) if record.decision == "selected" and record.series_key in apart else record
        for record in records
    ]


def _scans(record: SeriesRecord) -> set[Hashable]:
    """Return keys that single-slice series have in common if they may be slices of one scan."""
    names = ("rows", "columns", "spacing_x_mm", "convolution_kernel", "series_description")
    alike = tuple(getattr(record, name) for name in names)
    scans: set[Hashable] = set()
    if record.study_instance_uid is not None:
        scans.add((record.patient_id, record.study_date, record.study_instance_uid, alike))
    if record.patient_id is not None and record.study_date is not None:
        scans.add((record.patient_id, record.study_date, alike))
    return scans


def _extent_mm(record: SeriesRecord) -> float:
    return record.extent_mm or 0.0


def _width_mm(record: SeriesRecord) -> float:
    """Return the shorter side of the field of view, mm; 0 if it is not known."""
    sides = ((record.rows, record.spacing_y_mm), (record.columns, record.spacing_x_mm))
    return min((count or 0) * (spacing_mm or 0.0) for count, spacing_mm in sides)


def _thickness_mm(record: SeriesRecord) -> float | None:
    return max(record.spacing_z_mm or 0.0, record.slice_thickness_mm or 0.0) or None


def _thin_class(record: SeriesRecord) -> int:
    thickness = _thickness_mm(record)
    return len(THIN_MM) + 1 if thickness is None else bisect_left(THIN_MM, thickness)


def _kernel_rank(record: SeriesRecord, wanted: str) -> int:
    kind = kernel_kind(record.convolution_kernel)
    return 1 if kind is None else 0 if kind == wanted else 2


def _mm(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} mm"


@dataclass(frozen=True, kw_only=True)
class _Largest:
    """Largest extent and field of view of the series of a study that may show the chest; no more than lungs need."""

    extent_mm: float
    width_mm: float


@dataclass(frozen=True)
class _Preference:
    """One entry of ``--prefer``."""

    rank: Callable[[SeriesRecord, _Largest], Any]
    """Rank of a series in its study; the lowest is preferred."""
    reason: Callable[[SeriesRecord, SeriesRecord], str]
    """Reason why a series is only an alternative to another that ranks before it."""


_PREFERENCES: Final = {
    "stack": _Preference(
        lambda record, largest: _extent_mm(record) < max(STACK_MM, STACK_SHARE * largest.extent_mm),
        lambda one, _best: f"reaches over {_extent_mm(one):.0f} mm only",
    ),
    "chest": _Preference(
        # Many chest series name no part of the body, and one that does is no better for it.
        lambda record, _largest: names_other_parts(record.series_description, record.body_part),
        lambda _one, _best: "its names tell of other parts of the body only",
    ),
    "plain": _Preference(
        lambda record, _largest: _is_unlike(record),
        lambda _one, _best: "computed from several energies or one of them, or called a projection",
    ),
    "field": _Preference(
        lambda record, largest: _width_mm(record) < FIELD_SHARE * largest.width_mm,
        lambda one, best: f"a field of view of {_width_mm(one):.0f} mm against {_width_mm(best):.0f} mm",
    ),
    "coverage": _Preference(
        lambda record, largest: _extent_mm(record) < STUDY_COVERAGE_SHARE * largest.extent_mm,
        lambda one, best: f"reaches over {_extent_mm(one):.0f} mm against {_extent_mm(best):.0f} mm",
    ),
    "original": _Preference(
        lambda record, _largest: qc.DERIVED_REFORMAT in record.qc_flags or bool(record.repairs),
        lambda _one, _best: "computed from another series, or resampled",
    ),
    "inspiration": _Preference(
        lambda record, _largest: (
            names_expiration(record.series_description) or names_attenuation_scan(record.series_description)
        ),
        lambda _one, _best: "its description names an expiration, or a scan for attenuation correction",
    ),
    "thin": _Preference(
        lambda record, _largest: _thin_class(record),
        lambda one, best: f"slices of {_mm(_thickness_mm(one))} against {_mm(_thickness_mm(best))}",
    ),
    "soft": _Preference(
        lambda record, _largest: _kernel_rank(record, "soft"),
        lambda _one, _best: "its kernel is not soft, or not known",
    ),
    "lung": _Preference(
        lambda record, _largest: _kernel_rank(record, "sharp"),
        lambda _one, _best: "its kernel is not a lung kernel, or not known",
    ),
    "slices": _Preference(
        lambda record, _largest: -record.n_slices,
        lambda one, best: f"{one.n_slices} slices against {best.n_slices}",
    ),
}
