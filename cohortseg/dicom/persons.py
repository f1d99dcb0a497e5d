"""Checks that patient identifiers and study dates are consistent over all files of a cohort."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from datetime import date
from typing import TypeAlias

from cohortseg.dicom.headers import Header
from cohortseg.dicom.visits import MIDNIGHT_DAYS

_Exam: TypeAlias = tuple[str, str]
_Days: TypeAlias = tuple[date, date] | None


class Persons:
    """Patient identifiers that more than one person seems to share, and slices that occur more than once.

    Such slices, or several series of one study in one frame of reference, occur under several identifiers, or under
    several study dates of one identifier.
    """

    def __init__(self) -> None:
        self._owners: dict[int, tuple[str, date | None]] = {}
        self._visits: dict[tuple[str, date | None], tuple[str, date | None]] = {}
        self._shared: set[int] = set()
        self._otherwise_dated: set[int] = set()
        self._exams: defaultdict[_Exam, dict[str, _Days]] = defaultdict(dict)
        self._series: dict[tuple[_Exam, str], tuple[str, date | None]] = {}
        self._reused: set[_Exam] = set()
        self._facts: dict[str, list[Hashable]] = {}
        self._conflicting: set[str] = set()

    def add(self, header: Header) -> None:
        """Record what a file says about its patient; missing values contradict nothing."""
        if header.patient_id is None:
            return
        # one object shared by all slices of a visit, since a cohort has millions of slices
        visit = (header.patient_id, header.study_date)
        slice_, visit = _slice(header), self._visits.setdefault(visit, visit)
        if exam := _exam(header):
            before = self._series.get((exam, header.series_instance_uid))
            if before is None:
                self._series[exam, header.series_instance_uid] = visit
                self._exams[exam][visit[0]] = _spanned(self._exams[exam].get(visit[0]), visit[1])
            elif before != visit:
                self._reused.add(exam)
        key = self._key(slice_, header.patient_id)
        if key != slice_:
            self._shared.add(slice_)
        _, day = self._owners.setdefault(key, visit)
        if day is None:
            self._owners[key] = visit
        elif header.study_date not in (None, day):
            self._otherwise_dated.add(key)
        if header.patient_id in self._conflicting:
            return
        known = self._facts.setdefault(header.patient_id, [None] * len(header.patient_facts))
        for place, fact in enumerate(header.patient_facts):
            if known[place] is None:
                known[place] = fact
            elif fact not in (None, known[place]):
                self._conflicting.add(header.patient_id)

    def conflict(self, patient_id: str | None) -> bool:
        """Return whether files of an identifier disagree about the person."""
        return patient_id in self._conflicting

    def has_two_ids(self, volume: Sequence[Header]) -> bool:
        """Return whether a slice of a volume, or a series of its exam, also occurs under another identifier."""
        return len(self._patients(volume[0])) > 1 or any(_slice(header) in self._shared for header in volume)

    def has_two_dates(self, volume: Sequence[Header]) -> bool:
        """Return whether a slice of a volume, or a series of its exam, also has another study date of its patient."""
        days = self._patients(volume[0]).get(volume[0].patient_id or "")
        if days is not None and (days[1] - days[0]).days > MIDNIGHT_DAYS:
            return True
        return any(self._key(_slice(header), header.patient_id) in self._otherwise_dated for header in volume)

    def _patients(self, header: Header) -> Mapping[str, _Days]:
        """Return the identifiers of a slice's exam, with the first and the last study date of each.

        Nothing if a series of the exam has several itself: some anonymisers repeat the UIDs for every patient.
        """
        exam = _exam(header)
        if exam is None or exam in self._reused or header.patient_id is None:
            return {}
        return self._exams.get(exam, {})

    def _key(self, slice_: int, patient_id: str | None) -> int:
        """Return the slice's own number for the first patient who has it, and another for each further patient."""
        owner = self._owners.get(slice_)
        return slice_ if owner is None or owner[0] == patient_id else hash((slice_, patient_id))


def _spanned(days: _Days, day: date | None) -> _Days:
    """Return the first and the last of some study dates and one more."""
    if day is None:
        return days
    return (day, day) if days is None else (min(days[0], day), max(days[1], day))


def _exam(header: Header) -> _Exam | None:
    """Return the study and the frame of reference of a slice, if both are known."""
    study, frame = header.study_instance_uid, header.frame_of_reference_uid
    return None if study is None or frame is None else (study, frame)


def _slice(header: Header) -> int:
    """Return a hash of a slice's UID, position and spacing: some anonymisers repeat the UIDs for every patient."""
    return hash((header.sop_instance_uid, header.image_position_patient, header.pixel_spacing_mm))
