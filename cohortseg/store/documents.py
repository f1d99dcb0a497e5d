"""JSON documents that may be damaged, or written by others."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return the content of a document; whatever is wrong with it raises one kind of error.

    Raises
    ------
    ValueError
        If it is no JSON, no text, or nested deeper than can be read.
    """
    try:
        return json.loads(text)  # noqa: TID251 - here it is
    except RecursionError:
        raise ValueError("nested too deeply") from None
