"""The conditions of ``--select`` on columns of the manifest."""

import math
import operator
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, get_args, get_type_hints
from unicodedata import normalize

from cohortseg import qc
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import ConfigError

_CHOICES: Final = ("preferred", "all")
_RULE: Final = re.compile(r"\s*([A-Za-z_]+)\s*(<=|>=|!=|!~|=|~|<|>)\s*(.*?)\s*", re.DOTALL)
_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
_ALIASES: Final = {"kernel": "convolution_kernel", "description": "series_description"}
_DECIDED: Final = frozenset({"decision", "reason"})
"""Columns that are decided by these rules, among others, and cannot be selected by."""
_COLUMNS: Final = {
    name: {hint, *get_args(hint)} for name, hint in get_type_hints(SeriesRecord).items() if name not in _DECIDED
}
"""The types of each column's values."""


@dataclass(frozen=True)
class Rule:
    """One condition of ``--select``."""

    text: str
    column: str
    matches: Callable[[Any], bool]


def parse_rules(select: Sequence[str]) -> tuple[bool, list[Rule]]:
    """Return whether one series per study is wanted, and the conditions.

    Parameters
    ----------
    select
        Each ``preferred``, ``all`` or COLUMN OPERATOR VALUE. Operators: ``=  !=  <  <=  >  >=`` compare numbers, dates
        (YYYY-MM-DD) or texts, by the column's type; ``~`` and ``!~`` search a regular expression, ignoring case. In a
        column of several values (``image_type``, ``qc_flags``) any of them may match. An absent value matches only
        ``!=`` and ``!~``.

    Raises
    ------
    ConfigError
        If a rule is none of these; the message says what is valid.
    """
    chosen = [rule for rule in select if rule in _CHOICES]
    if len(set(chosen)) > 1:
        raise ConfigError("--select all and --select preferred exclude each other")
    return "all" not in chosen, [_parse_rule(rule) for rule in select if rule not in _CHOICES]


def _parse_rule(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--select must be all, preferred or a rule like 'kernel~B30|B31' or 'spacing_z_mm<=2', got {text!r}"
        )
    name, sign, value = match.groups()
    value = normalize("NFC", value)  # as header text is
    column = _ALIASES.get(name, name)
    if column in _DECIDED:
        raise ConfigError(f"--select {text!r}: {name} is what these rules decide; select by other columns")
    if column not in _COLUMNS:
        raise ConfigError(f"--select {text!r}: {name} is no column; valid are {', '.join([*_ALIASES, *_COLUMNS])}")
    if value.startswith(("=", "~", "<", ">", "!", '"', "'")):
        raise ConfigError(
            f"--select {text!r}: the operators are =, !=, <, <=, >, >=, ~ and !~, and the value stands without quotes"
        )
    try:
        rule = Rule(text, column, _condition(sign, value, _COLUMNS[column]))
    except (ValueError, re.error) as error:
        raise ConfigError(f"--select {text!r}: {error}") from error
    if column == "qc_flags":
        finds = _condition(sign.removeprefix("!"), value, _COLUMNS[column])
        later = [flag for flag in (*qc.CHOICE_FLAGS, *qc.PIXEL_FLAGS, *qc.TIMELINE_FLAGS) if finds(flag)]
        if later or not finds(tuple(qc.HEADER_FLAGS)):
            named = f"{', '.join(later[:3])} come later" if later else "headers raise no such flag"
            raise ConfigError(
                f"--select {text!r}: {named}; only flags of headers can be selected by (docs/tables.md), others are "
                "filtered in burden.parquet"
            )
    return rule


def _condition(sign: str, value: str, types: Collection[Any]) -> Callable[[Any], bool]:
    """Return the test that an operator and a value make for a column whose values have these types."""
    if "~" in sign:
        pattern = re.compile(value, re.IGNORECASE)
        return _over_values(lambda found: pattern.search(str(found)) is not None, negated=sign == "!~")
    wanted: Any = value
    if float in types or int in types:
        wanted = _real(value)
    elif date in types:
        wanted = _day(value)
    order = _ORDERS["=" if sign == "!=" else sign]
    return _over_values(lambda found: order(found, wanted), negated=sign == "!=")


def _real(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no number; write it without a unit")
    return number


def _day(value: str) -> date:
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{value!r} is no date; write YYYY-MM-DD") from None


def _over_values(test: Callable[[Any], bool], *, negated: bool) -> Callable[[Any], bool]:
    def matches(value: Any) -> bool:
        values = value if isinstance(value, tuple) else (value,)
        return any(test(item) for item in values if item is not None) != negated

    return matches
