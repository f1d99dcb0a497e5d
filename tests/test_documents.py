"""JSON documents that may be damaged, or somebody else's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortseg.store.documents import parse_json


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "[" * 100_000, '{"a":' * 100_000, b"\xff\xfe{", b"\x00"])
def test_whatever_is_wrong_with_a_document_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any text: callers name the file
        parse_json(text)


@given(st.binary(max_size=40) | st.text(max_size=40))
def test_any_text_is_read_or_refused_alike(text: str | bytes) -> None:
    try:
        document = parse_json(text)
    except ValueError:
        return
    assert document is None or isinstance(document, bool | int | float | str | list | dict)
