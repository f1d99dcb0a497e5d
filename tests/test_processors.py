"""Other processes: Ctrl-C is left to the one that started them, and a call that ends its process costs nothing else."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import pytest
from phantoms import write_series

from cohortseg.dicom.scan import scan_cohort
from cohortseg.processors import SecondProcess, process_pool, uninterrupted

WORK = """
from cohortseg.processors import process_pool, uninterrupted

if __name__ == "__main__":
    with process_pool(2) as pool:
        print("ready", flush=True)
        with uninterrupted():
            results = pool.map(bytes, [1 << 22] * 500)
        for _ in results:
            print("ready", flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 20])
def test_ctrl_c_while_processes_begin_and_send_results_ends_them_all_silently(tmp_path: Path, lines: int) -> None:
    (tmp_path / "work.py").write_text(WORK)
    command = [sys.executable, tmp_path / "work.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as run:
        assert run.stdout is not None
        for _ in range(lines):
            assert run.stdout.readline() == b"ready\n"
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        try:
            _, said = run.communicate(timeout=60)  # until the last of them has closed both
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == -signal.SIGINT
    assert said.count(b"Traceback") == 1, "of the process that was asked"


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_does_not_wait_for_work_that_takes_long(tmp_path: Path, times: int) -> None:
    """Nor does it where what uses the pool is a generator, which a second Ctrl-C meets while the pool ends."""
    (tmp_path / "sleep.py").write_text("""
import os, time
from cohortseg.processors import process_pool, uninterrupted

def results():
    with process_pool(1) as pool:
        with uninterrupted():
            begun, asleep = pool.submit(os.getpid), pool.submit(time.sleep, 120)
        yield begun.result()
        yield asleep.result()

if __name__ == "__main__":
    for _ in results():
        print("asleep", flush=True)
        time.sleep(60)
""")
    command = [sys.executable, tmp_path / "sleep.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as run:
        assert run.stdout is not None
        run.stdout.readline()
        try:
            for _ in range(times):
                run.send_signal(signal.SIGINT)
                time.sleep(0.1)
            run.communicate(timeout=30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == -signal.SIGINT


def test_what_interrupts_a_run_waits_while_work_is_handed_in() -> None:
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda number, _frame: received.append(number)) for number in numbers]
    over = threading.Event()
    other = threading.Thread(target=over.wait)  # it may take the signal, too
    other.start()
    try:
        with process_pool(1) as pool:
            with uninterrupted():
                blocked = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ())
                for number in numbers:
                    os.kill(os.getpid(), number)
                time.sleep(0.05)
                assert not received
            assert sorted(received) == sorted(numbers)
            ignored = {signal.SIGINT, signal.SIGHUP}
            assert blocked.result() == ignored, "the other process can be ended, but not by Ctrl-C or a lost terminal"
    finally:
        over.set()
        other.join()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_a_call_that_ends_its_process_costs_that_call_only() -> None:
    with SecondProcess() as second:
        assert second.call(int, "12", base=8) == 10
        with pytest.raises(BrokenProcessPool):
            second.call(os.abort)
        assert second.call(os.getpid) != os.getpid()
        with pytest.raises(ValueError, match="invalid literal"):
            second.call(int, "x")


def test_where_no_process_can_begin_calls_are_done_in_this_one() -> None:
    script = """
import os
from cohortseg.processors import SecondProcess

with SecondProcess() as second:
    print(second.call(os.getpid) == os.getpid())
"""
    ended = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "True\n")
    assert "no second process can begin" in ended.stderr


def test_without_shared_memory_work_is_done_in_this_process(monkeypatch, tmp_path, caplog):
    def no_semaphore(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", no_semaphore)
    with SecondProcess() as second:
        assert second.call(os.getpid) == os.getpid()
    assert "no usable /dev/shm" in caplog.text
    write_series(tmp_path)
    assert len(scan_cohort(tmp_path, workers=2).series) == 1
