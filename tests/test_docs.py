"""The documentation that is made from the code is the code's."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_page_of_the_tables_is_up_to_date() -> None:
    expected = runpy.run_path(str(DOCS / "make_tables.py"))["tables_markdown"]()
    assert (DOCS / "tables.md").read_text(encoding="utf-8") == expected, "run: python docs/make_tables.py"
