"""The documentation that is made from the code is the code's."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_page_of_the_tables_is_up_to_date() -> None:
    expected = runpy.run_path(str(DOCS / "make_tables.py"))["tables_markdown"]()
    assert (DOCS / "tables.md").read_text(encoding="utf-8") == expected, "run: python docs/make_tables.py"


def test_page_of_the_settings_is_up_to_date() -> None:
    expected = runpy.run_path(str(DOCS / "make_settings.py"))["settings_markdown"]()
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == expected, "run: python docs/make_settings.py"
    for name in ("batch_size", "auto_ray_series", "supervised_iterations", "min_box"):
        assert f"| `{name}` | " in expected
