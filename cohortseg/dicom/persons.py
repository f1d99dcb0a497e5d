"""Checks that patient identifiers and study dates are consistent over all files of a cohort."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from datetime import date

from cohortseg.dicom.headers import Header
from cohortseg.dicom.visits import MIDNIGHT_DAYS


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
        self._exams: defaultdict[tuple[str, str], dict[str, tuple[str, date | None]]] = defaultdict(dict)
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
            self._exams[exam].setdefault(header.series_instance_uid, visit)
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
        others = {patient_id for patient_id, _ in self._of_other_series(volume[0])}
        return bool(others - {volume[0].patient_id}) or any(_slice(header) in self._shared for header in volume)

    def has_two_dates(self, volume: Sequence[Header]) -> bool:
        """Return whether a slice of a volume, or a series of its exam, also has another study date of its patient."""
        patient_id, day = volume[0].patient_id, volume[0].study_date
        others = (other for owner, other in self._of_other_series(volume[0]) if owner == patient_id)
        if day is not None and any(other and abs((other - day).days) > MIDNIGHT_DAYS for other in others):
            return True
        return any(self._key(_slice(header), header.patient_id) in self._otherwise_dated for header in volume)

    def _of_other_series(self, header: Header) -> list[tuple[str, date | None]]:
        """Return the identifier and study date (of the first file) of each other series of a slice's exam."""
        exam = _exam(header)
        if exam is None or header.patient_id is None:
            return []
        series = self._exams.get(exam, {})
        return [visit for uid, visit in series.items() if uid != header.series_instance_uid]

    def _key(self, slice_: int, patient_id: str | None) -> int:
        """Return the slice's own number for the first patient who has it, and another for each further patient."""
        owner = self._owners.get(slice_)
        return slice_ if owner is None or owner[0] == patient_id else hash((slice_, patient_id))


def _exam(header: Header) -> tuple[str, str] | None:
    """Return the study and the frame of reference of a slice, if both are known."""
    study, frame = header.study_instance_uid, header.frame_of_reference_uid
    return None if study is None or frame is None else (study, frame)


def _slice(header: Header) -> int:
    """Return a hash of a slice's UID, position and spacing: some anonymisers repeat the UIDs for every patient."""
    return hash((header.sop_instance_uid, header.image_position_patient, header.pixel_spacing_mm))
