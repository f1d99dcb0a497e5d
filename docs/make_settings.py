"""Write docs/settings.md from the docstrings of the settings: run this after changing one; a test compares them."""

import ast
import inspect
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from cohortseg.config import CanonicalConfig, InferConfig, ModelConfig, ScanConfig, TrainConfig

_INTRO: Final = """# Settings

Made from `cohortseg/config.py` by `docs/make_settings.py`; do not edit.

`--config FILE` of `infer`, `scan`, `train` and `compare` reads settings from a TOML file. Options on the command line
override the file, and an unknown name is an error. TOML has no "none": to get that default, leave the setting out. For
example, `cohortseg infer cohort/ --config mine.toml` with

```toml
overlays = false
batch_size = 8
select = ["all", "kernel~B30"]
```
"""
_PAGES: Final = (
    (InferConfig, "infer", "The first three also apply to `scan`."),
    (
        TrainConfig,
        "train",
        "Defaults are those of `--preset paper`; the presets `cpu`, `labels` and `student` change many of them.",
    ),
    (ModelConfig, "train, table `[model]`", ""),
    (CanonicalConfig, "train, table `[canonical]`", ""),
)


def settings_markdown() -> str:
    """Return the whole page."""
    return "\n".join([_INTRO, *(_table(cls, title, note) for cls, title, note in _PAGES)])


def _table(cls: type[Any], title: str, note: str) -> str:
    meanings = _meanings(ScanConfig) | _meanings(cls) if issubclass(cls, ScanConfig) else _meanings(cls)
    defaults = {item.name: item.default for item in fields(cls)}
    meanings.pop("preset", None)  # an option, not a setting of a file
    rows = "\n".join(f"| `{name}` | {_shown(defaults[name])} | {meaning} |" for name, meaning in meanings.items())
    above = f"{note}\n\n" if note else ""
    return f"## {title}\n\n{above}| setting | default | meaning |\n|---|---|---|\n{rows}\n"


def _meanings(cls: type[Any]) -> dict[str, str]:
    """Return the text below each field of a class."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(cls)).body if isinstance(node, ast.ClassDef))
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if not isinstance(value, bool | int | float | str | tuple):
        return "see below"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(settings_markdown(), encoding="utf-8")
