"""Fixtures that several test modules share."""

import logging
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from phantoms import ill_body, write_series
from runs import run
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.config import CanonicalConfig, ModelConfig
from cohortseg.models.discriminator import Discriminator
from cohortseg.models.segmenter import Segmenter
from cohortseg.weights import ModelCard, save_model

settings.register_profile("cohortseg", deadline=None, max_examples=50)
settings.load_profile("cohortseg")


@pytest.fixture(autouse=True)
def _messages_as_at_first() -> None:
    """Undo the verbosity that a command sets, in a test or a fixture, so that no test depends on those before it."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("cohortseg").setLevel(logging.NOTSET)


def pytest_configure(config: pytest.Config) -> None:
    """Take one core where several processes test (``-n``), here and in the commands that tests start."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Ray leave sockets and files of its processes to the garbage collector; ours close what they open."""
    for item in items:
        if item.get_closest_marker("ray"):
            if item.path.parent.name != "e2e":  # where the test command looks for them
                raise pytest.UsageError(f"{item.nodeid}: tests that start Ray belong into tests/e2e")
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


def _realdata(name: str) -> Path:
    """A set of real CT data in $COHORTSEG_DATA, else in ../shared/data beside the checkout."""
    named = os.environ.get("COHORTSEG_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / name).is_dir():
        pytest.skip(f"no {name} in {folder}: set COHORTSEG_DATA to the folder that holds it")
    return folder / name


@pytest.fixture(scope="session")
def covid_semiseg() -> Path:
    return _realdata("COVID-SemiSeg")


@pytest.fixture(scope="session")
def ny_sbu() -> Path:
    """32 files of 5 patients, as `test_hospital_files` lists them."""
    return _realdata("COVID-19-NY-SBU")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    networks = ModelConfig(
        encoder_width=16, decoder_channels=(16, 16, 16, 16), codebook_size=8, code_dim=8, discriminator_channels=4
    )
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    card = ModelCard(name="random", model=networks, canonical=CanonicalConfig(size=64))
    save_model(path, Segmenter(networks), Discriminator(4), card)
    return path


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with two dates each, and one series whose last file was cut off."""
    root = tmp_path_factory.mktemp("cohort")
    for patient, day in (("A", 1), ("A", 9), ("B", 3), ("B", 5), ("C", 7)):
        paths = write_series(
            root / f"{patient}{day}",
            shape=(4, 96, 80),
            spacing_mm=(5.0, 3.0, 3.5),
            hu=ill_body,
            patient_id=patient,
            study_date=f"2020040{day}",
        )
    paths[-1].write_bytes(paths[-1].read_bytes()[:-5000])
    return root


@pytest.fixture(scope="session")
def quirks_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `cohortseg sample --quirks` writes; only read."""
    out = tmp_path_factory.mktemp("quirks") / "sample"
    assert CliRunner().invoke(app, ["sample", str(out), "--quirks"]).exit_code == 0
    return out


@pytest.fixture(scope="session")
def unbroken(cohort: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run over `cohort`; tests work on copies of it."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    run(cohort, out, model_path)
    return out
