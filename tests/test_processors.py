"""Other processes: Ctrl-C is left to the one that started them, and a call that ends its process costs nothing else."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from cohortseg.processors import Apart

WORK = """
from cohortseg.processors import process_pool

if __name__ == "__main__":
    with process_pool(2) as pool:
        print("ready", flush=True)
        for _ in pool.map(bytes, [1 << 22] * 5000):
            print("ready", flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 20])
def test_ctrl_c_while_processes_begin_and_send_results_ends_them_all_silently(tmp_path: Path, lines: int) -> None:
    (tmp_path / "work.py").write_text(WORK)
    command = [sys.executable, tmp_path / "work.py"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, start_new_session=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        for _ in range(lines):
            assert run.stdout.readline() == b"ready\n"
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        run.stdout.close()  # nobody reads on
        said = run.stderr.read().decode()  # until the last of them has closed it
        assert run.wait(timeout=60) == -signal.SIGINT
    assert said.count("Traceback") == 1, "of the process that was asked"


def test_a_call_that_ends_its_process_costs_that_call_only() -> None:
    with Apart() as apart:
        assert apart.call(int, "12", base=8) == 10
        with pytest.raises(BrokenProcessPool):
            apart.call(os.abort)
        assert apart.call(os.getpid) != os.getpid()
        with pytest.raises(ValueError, match="invalid literal"):
            apart.call(int, "x")


def test_a_process_that_cannot_begin_is_not_taken_for_a_call_that_ended_it() -> None:
    script = "from cohortseg.processors import Apart\nwith Apart() as apart:\n    apart.call(int)\n"
    ended = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "StoreError: a second process ended as it began" in ended.stderr
