"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("cohortseg", deadline=None, max_examples=50)
settings.load_profile("cohortseg")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real CT data: $COHORTSEG_DATA, else ../shared/data beside the checkout."""
    named = os.environ.get("COHORTSEG_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "COVID-19-NY-SBU").is_dir() and not (folder / "COVID-SemiSeg").is_dir():
        pytest.skip(f"no real CT data in {folder}: set COHORTSEG_DATA to the folder that holds COVID-SemiSeg")
    return folder
