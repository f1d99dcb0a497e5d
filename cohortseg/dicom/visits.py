"""Study dates grouped into visits: some anonymisers give all visits of a patient one UID."""

from collections.abc import Iterable
from datetime import date
from typing import Final

MIDNIGHT_DAYS: Final = 1
"""Study dates up to this many days after the first of a visit belong to it: a scan may go on past midnight."""


def visit_numbers(days: Iterable[date | None]) -> dict[date | None, int]:
    """Return the visit number of each study date, from 0 in order of time; None belongs to the first visit."""
    numbers: dict[date | None, int] = {None: 0}
    number, first = 0, None
    for day in sorted({day for day in days if day is not None}):
        if first is None:
            first = day
        elif (day - first).days > MIDNIGHT_DAYS:
            number, first = number + 1, day
        numbers[day] = number
    return numbers
