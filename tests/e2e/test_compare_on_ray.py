"""``cohortseg compare`` with trainings beside each other, on a real Ray."""

from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest
from training_data import TinyComparison
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.compare.tables import HELD_OUT
from cohortseg.store.tables import read_table


@pytest.mark.ray
def test_trainings_beside_each_other_on_ray_give_the_same_tables(tmp_path: Path) -> None:
    tiny = TinyComparison(tmp_path)

    def compared(out: Path, *options: str) -> pl.DataFrame:
        done = CliRunner().invoke(app, [*tiny.arguments(out, "plain,full", "1"), *options])
        assert done.exit_code == 0, done.output
        return read_table(out / HELD_OUT.file_name, HELD_OUT)

    with patch("cohortseg.train.loop.RunPage"):  # drawing takes longer than training
        here = compared(tmp_path / "here")
    on_ray = compared(tmp_path / "ray", "--workers", "2")
    shown = ["row", "fold", "image", "class_name", "truth_pixels"]
    assert on_ray.select(shown).equals(here.select(shown))
    pixels = [table["predicted_pixels"].to_numpy() / 128**2 for table in (on_ray, here)]
    assert pixels[0] == pytest.approx(pixels[1], abs=0.02)  # other numbers of threads add in another order
