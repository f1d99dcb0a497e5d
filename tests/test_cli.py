"""The command line as a whole: quick to start, quiet on stdout, one line and the right exit code on an error."""

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cohortseg import __version__
from cohortseg.cli import app
from cohortseg.weights import default_model_path

COMMANDS = [command.callback.__name__ for command in app.registered_commands]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_starting_the_program_loads_neither_torch_nor_ray():
    code = "import sys, cohortseg.cli; print([name for name in ('torch', 'ray', 'polars') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command):
    code, stdout, _ = run(command, "--help")
    assert code == 0
    assert "Example:" in stdout
    assert f"cohortseg {command}" in re.sub(r"\s+", " ", stdout)


def test_version():
    assert run("--version") == (0, f"cohortseg {__version__}\n", "")


def test_info_tells_versions_devices_and_the_model_with_its_terms():
    code, stdout, _ = run("info", "--json")
    facts = json.loads(stdout)
    assert code == 0
    assert facts["versions"]["cohortseg"] == __version__
    assert facts["device"]["cpus"] >= 1
    assert "non-commercial" in facts["model"]["licence"]
    import hashlib

    assert facts["model"]["sha256"] == hashlib.sha256(default_model_path().read_bytes()).hexdigest()
    code, stdout, _ = run("info")
    assert code == 0
    assert facts["model"]["sha256"][:20] in stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["infer", "does-not-exist"], "does not exist"),
        (["scan", "does-not-exist"], "does-not-exist"),
        (["report", "does-not-exist"], "does-not-exist"),
        (["export", "does-not-exist", "--format", "png"], "does-not-exist"),
        (["export", "damaged", "--format", "nifti"], "cannot be read as Parquet"),
        (["report", "damaged"], "cannot be read as Parquet"),
        (["sample", "x", "--patients", "0"], "patients"),
        (["evaluate", "--data", "does-not-exist"], "TrainingSet"),
    ],
)
def test_wrong_usage_is_one_error_and_exit_code_2_with_nothing_on_stdout(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/burden.parquet").write_bytes(b"PAR1, and no more")
    code, stdout, stderr = run(*arguments)
    assert code == 2
    assert stdout == ""
    assert words in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_quiet_is_taken_before_and_behind_the_command(tmp_path, place):
    command = ["sample", str(tmp_path / "x"), "--patients", "1", "--timepoints", "1", "--size", "64", "--slices", "2"]
    command.insert(place, "-q")
    assert run(*command) == (0, "", "")


def test_the_model_s_folder_holds_its_notice_and_card():
    folder = default_model_path().parent
    assert "non-commercial" in (folder / "NOTICE.md").read_text(encoding="utf-8")
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for heading in ("Data", "Recipe", "Results", "Known failures", "Intended use"):
        assert f"## {heading}" in card


def test_warnings_of_libraries_which_may_quote_headers_are_not_shown(capsys):
    import logging

    from cohortseg.cli.console import set_verbosity

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_verbosity(quiet=False, verbose=True)
        logging.getLogger("pydicom").warning("Unknown encoding 'DOE^JANE'")
        logging.getLogger("cohortseg.infer").info("series 0123 failed")
        shown = capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "DOE" not in shown
    assert "series 0123 failed" in shown
