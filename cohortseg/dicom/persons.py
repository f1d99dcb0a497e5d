"""Checks that patient identifiers and study dates are consistent over all files of a cohort."""

from collections.abc import Hashable
from datetime import date

from cohortseg.dicom.headers import Header


class Persons:
    """Patient identifiers that more than one person seems to share, and slices that occur more than once.

    Such slices occur under several identifiers, or under several study dates of one identifier.
    """

    def __init__(self) -> None:
        self._owners: dict[int, tuple[str, date | None]] = {}
        self._visits: dict[tuple[str, date | None], tuple[str, date | None]] = {}
        self._shared: set[int] = set()
        self._otherwise_dated: set[int] = set()
        self._facts: dict[str, list[Hashable]] = {}
        self._conflicting: set[str] = set()

    def add(self, header: Header) -> None:
        """Record what a file says about its patient; missing values contradict nothing."""
        if header.patient_id is None:
            return
        # one object shared by all slices of a visit, since a cohort has millions of slices
        visit = (header.patient_id, header.study_date)
        slice_, visit = _slice(header), self._visits.setdefault(visit, visit)
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

    def has_two_ids(self, header: Header) -> bool:
        """Return whether a slice also occurs under another identifier."""
        return _slice(header) in self._shared

    def has_two_dates(self, header: Header) -> bool:
        """Return whether a slice also occurs under another study date of its patient."""
        return self._key(_slice(header), header.patient_id) in self._otherwise_dated

    def _key(self, slice_: int, patient_id: str | None) -> int:
        """Return the slice's own number for the first patient who has it, and another for each further patient."""
        owner = self._owners.get(slice_)
        return slice_ if owner is None or owner[0] == patient_id else hash((slice_, patient_id))


def _slice(header: Header) -> int:
    """Return a hash of a slice's UID, position and spacing: some anonymisers repeat the UIDs for every patient."""
    return hash((header.sop_instance_uid, header.image_position_patient, header.pixel_spacing_mm))
