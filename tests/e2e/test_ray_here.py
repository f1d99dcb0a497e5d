"""A Ray that is started on this machine: where it lets its token lie, and a run where it cannot be started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import differences

pytestmark = pytest.mark.ray

CONNECT = """
import signal
from cohortseg.cluster import connected
mine = lambda *_: None
signal.signal(signal.SIGTERM, mine)
with connected(None):
    assert signal.getsignal(signal.SIGTERM) is mine
"""


def test_the_token_that_ray_makes_is_for_its_owner_and_the_handler_of_sigterm_stays(tmp_path: Path) -> None:
    """In a process of its own: Ray reads where the token lies once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", CONNECT], check=True, env=environment, umask=0o022)
    token = tmp_path / ".ray/auth_token"
    assert (token.stat().st_mode & 0o777, len(token.read_text()) > 30) == (0o600, True)


def test_where_ray_does_not_start_a_run_that_did_not_ask_for_it_goes_on_without(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path
) -> None:
    out, away = tmp_path / "out", tmp_path / ("x" * 100)
    away.mkdir()
    settings = tmp_path / "infer.toml"
    settings.write_text("auto_ray_series = 2\n")
    command = [sys.executable, "-m", "cohortseg", "infer", cohort, "-o", out, "--model", model_path]
    without = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = without | {"RAY_TMPDIR": str(away), "LOKY_MAX_CPU_COUNT": "2"}
    for more, code in ((["--config", settings], 3), (["--engine", "ray", "--retry-failed"], 1)):
        done = subprocess.run(
            [*map(str, (*command, *more))], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "Ray cannot be started on this machine" in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
        assert differences(out, unbroken) == []
