"""Which study dates are one visit: some anonymisers give all visits of a patient one UID."""

from collections.abc import Iterable
from datetime import date
from typing import Final

MIDNIGHT_DAYS: Final = 1
"""Study dates so near to the first of a visit are of it: a scan may go on past midnight."""


def visit_numbers(days: Iterable[date | None]) -> dict[date | None, int]:
    """Return a number for each study date, from 0 in the order of the visits; no date is of the first."""
    numbers: dict[date | None, int] = {None: 0}
    number, first = 0, None
    for day in sorted({day for day in days if day is not None}):
        if first is None:
            first = day
        elif (day - first).days > MIDNIGHT_DAYS:
            number, first = number + 1, day
        numbers[day] = number
    return numbers
