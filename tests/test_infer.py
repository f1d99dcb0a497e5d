"""Whole runs: what a damaged file, a killed process, a full disk or a vanished cohort leaves, and how many workers."""

import errno
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from phantoms import ill_body, write_series
from pydicom.uid import RLELossless
from runs import differences, hiding, run

from cohortseg.cluster import Resources
from cohortseg.config import InferConfig
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import ConfigError, DicomError, StoreError
from cohortseg.infer import stream
from cohortseg.infer.attempts import suspects
from cohortseg.infer.job import Done, Job
from cohortseg.infer.run import choose_engine, room_watched, worker_shares
from cohortseg.pipeline import infer_cohort, report_cohort
from cohortseg.store.schemas import BURDEN, MANIFEST, TIMELINE
from cohortseg.store.tables import read_table
from cohortseg.volume import Volume

SPACING_MM = (5.0, 3.0, 3.5)


def test_cut_off_file_is_a_failed_row_and_the_rest_goes_on(unbroken: Path) -> None:
    burden = read_table(unbroken / "burden.parquet", BURDEN)
    assert burden["status"].to_list() == ["ok"] * 4 + ["failed"]
    failed = burden.row(4, named=True)
    assert "0003.dcm" in failed["reason"]
    assert failed["po_pct"] is failed["lung_volume_ml"] is None
    assert read_table(unbroken / "timeline.parquet", TIMELINE)["days_since_baseline"].to_list() == [0, 8, 0, 2, 0]
    provenance = json.loads((unbroken / "run.json").read_text())
    assert provenance["counts"]["status"] == {"failed": 1, "ok": 4}
    page = (unbroken / "report.html").read_text()
    assert page.count("<img ") == 5
    assert "Secret" not in page


def test_second_run_does_nothing_until_something_changes(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path
) -> None:
    mine, out = tmp_path / "cohort", tmp_path / "out"
    shutil.copytree(cohort, mine)
    shutil.copytree(unbroken, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "lock"}
    again = run(mine, out, model_path)
    assert (again.num_done, again.complete) == (0, False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    os.utime(mine / "A1" / "0000.dcm", ns=(1, 1))
    changed = run(mine, out, model_path)
    assert changed.num_done == 1, "only the series whose file changed"
    assert run(mine, out, model_path, resume=False).num_done == 5


def test_a_cohort_measured_in_two_precisions_is_told_of(
    cohort: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for bf16, rules in ((False, ("patient_id = B",)), (True, ())):
        monkeypatch.setattr("cohortseg.weights.model_file.has_fast_bf16", lambda _, bf16=bf16: bf16)
        assert "precision" not in caplog.text
        burden = run(cohort, tmp_path / "out", model_path, select=rules).burden
    assert "some series were measured in bfloat16, others in float32 (column precision)" in caplog.text
    assert set(burden["precision"].drop_nulls()) == {"bfloat16", "float32"}


def test_a_failed_series_is_done_again_only_on_request(
    cohort: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that is missing now may be installed later; nothing in the files tells of it."""

    def undecodable(record: SeriesRecord, _root: Path) -> Volume:
        raise DicomError(f"{record.files[0]}: JPEG needs one of: a decoder")

    chosen = {"select": ("patient_id = B",)}
    with monkeypatch.context() as patch:
        patch.setattr("cohortseg.infer.job.read_volume", undecodable)
        assert run(cohort, tmp_path / "out", model_path, **chosen).counts == {"failed": 2}
    assert run(cohort, tmp_path / "out", model_path, **chosen).num_done == 0
    retried = run(cohort, tmp_path / "out", model_path, **chosen, retry_failed=True)
    assert (retried.num_done, retried.counts) == (2, {"ok": 2})
    assert run(cohort, tmp_path / "out", model_path, **chosen, retry_failed=True).num_done == 0


def test_a_damaged_file_is_not_tried_again_by_each_run(model_path: Path, tmp_path: Path) -> None:
    """Of pixels whose VR was damaged pydicom raises an OSError, as a disk does."""
    cohort, out = tmp_path / "cohort", tmp_path / "out"
    kind = {"shape": (4, 96, 80), "spacing_mm": SPACING_MM, "hu": ill_body, "transfer_syntax": RLELossless}
    for path in write_series(cohort, **kind):
        path.write_bytes(path.read_bytes().replace(b"\xe0\x7f\x10\x00OB", b"\xe0\x7f\x10\x00UN"))
    assert run(cohort, out, model_path).counts == {"failed": 1}
    assert run(cohort, out, model_path).num_done == 0


def test_series_not_chosen_any_more_are_told_and_removed_on_request(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(unbroken, tmp_path / "out")
    assert run(cohort, out, model_path).num_others == 0
    fewer = run(cohort, out, model_path, select=("patient_id = A",))
    assert (len(fewer.burden), fewer.num_others) == (2, 3)
    assert len(list(out.glob("masks.zarr/*/labels"))) == 4, "the fifth could not be read"
    assert run(cohort, out, model_path).num_done == 0, "chosen again, they are there"
    again = run(cohort, out, model_path, select=("patient_id = A",), resume=False)
    assert (again.num_done, again.num_others) == (2, 0)
    assert {path.parent.name for path in out.glob("masks.zarr/*/labels")} == set(again.burden["series_key"])
    assert {path.stem for path in out.glob("pictures/*.png")} == {"trajectories", *again.burden["series_key"]}


FAULTY = """
import os, signal, sys, time
from pathlib import Path
import cohortseg.infer.job as job
from cohortseg.config import InferConfig
from cohortseg.pipeline import infer_cohort

def inject(fault):
    real, calls = job.segment_series, []
    def segment(*args):
        calls.append(args)
        fault(len(calls))
        return real(*args)
    job.segment_series = segment

if __name__ == "__main__":
    cohort, out, model = map(Path, sys.argv[1:4])
    exec(sys.argv[4])
    infer_cohort(cohort, out, config=InferConfig(engine="local"), model_path=model)
"""
KILL = "inject(lambda call: call == {call} and (os.kill(os.getpid(), signal.{signal}), time.sleep(1)))"


def run_with_fault(cohort: Path, out: Path, model_path: Path, fault: str) -> subprocess.CompletedProcess[str]:
    """Run inference in a process of its own that has the fault built in."""
    script = out.parent / "faulty.py"
    script.write_text(FAULTY)
    command = [sys.executable, str(script), str(cohort), str(out), str(model_path), fault]
    return subprocess.run(command, check=False, timeout=500, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_killed_run_goes_on_to_the_same_result(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    ended = run_with_fault(cohort, out, model_path, KILL.format(call=3, signal=name))
    assert ended.returncode == -getattr(signal, name)
    done = {path.stem for path in (out / ".state/rows").glob("[!.]*.json")}  # not one that was being written
    assert 1 <= len(done) < 5, "some were done, and the third was on its way"
    assert not (out / "burden.parquet").exists()
    assert bool(suspects(out)) == (name == "SIGKILL"), "who is asked to stop leaves nothing open"
    assert run(cohort, out, model_path).num_done == 5 - len(done)
    assert run(cohort, out, model_path).num_done == 0
    assert differences(out, unbroken) == []


def test_sigterm_ends_the_command_as_ctrl_c_does(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path
) -> None:
    """It is what `timeout`, Slurm and Kubernetes send."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cohortseg", "infer", cohort, "-o", out, "--model", model_path]
    process = subprocess.Popen([*command, "--engine", "local"], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any((out / ".state/attempts").glob("*/*")):
        time.sleep(0.01)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert (process.returncode, "interrupted" in said, "Traceback" in said) == (1, True, False)
    assert not suspects(out)
    run(cohort, out, model_path)
    assert differences(out, unbroken) == []


def test_a_report_between_two_runs_says_so(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Masks of the run that was broken off may be newer than the tables of the one before."""
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    report_cohort(out)
    assert "broken off" not in caplog.text
    next((out / ".state/rows").glob("*.json")).unlink()
    assert run_with_fault(cohort, out, model_path, KILL.format(call=1, signal="SIGKILL")).returncode == -signal.SIGKILL
    report_cohort(out)
    assert "the last infer here was broken off" in caplog.text
    caplog.clear()
    run(cohort, out, model_path)
    report_cohort(out)
    assert "broken off" not in caplog.text


def test_poison_series_is_given_up_and_its_neighbour_is_not(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    poison = scan_cohort(cohort).series[0]
    # A real crash, wherever it is read: a hook ends the process that opens its first file.
    hook = """
import os, sys
def watch(event, args):
    if event == "open" and str(args[0]).endswith("A1/0000.dcm") and os.environ.get("ARMED") == "1":
        os.kill(os.getpid(), 9)
sys.addaudithook(watch)
"""
    assert poison.files[0] == "A1/0000.dcm"
    (tmp_path / "sitecustomize.py").write_text(hook)
    # The scan opens the file too, so the hook is armed only once it is over.
    arm = "import cohortseg.infer.run, cohortseg.pipeline as p; real = p.run_series\n"
    arm += "p.run_series = lambda *a: (os.environ.update(ARMED='1'), real(*a))[1]"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        assert run_with_fault(cohort, out, model_path, arm).returncode == -signal.SIGKILL
        second = run_with_fault(cohort, out, model_path, arm)
    assert second.returncode == 0, second.stderr
    rows = {row["series_key"]: row for row in read_table(out / "burden.parquet", BURDEN).iter_rows(named=True)}
    assert "given up after 3 attempts" in rows.pop(poison.series_key)["reason"]
    assert [row["status"] for row in rows.values()] == ["ok"] * 3 + ["failed"], "the last file of the last is cut off"
    assert suspects(out) == {poison.series_key}, "tried again, it is tried in a process of its own again"
    assert run(cohort, out, model_path, retry_failed=True).counts == {"ok": 4, "failed": 1}
    assert not suspects(out)


def test_process_that_ends_before_its_series_ends_the_run(
    cohort: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "out", tmp_path / "model.safetensors"
    shutil.copy(model_path, model)
    killed = KILL.format(call=1, signal="SIGKILL")
    assert run_with_fault(cohort, out, model, killed).returncode == -signal.SIGKILL
    # Only the process for what was at work then is a child: it dies where it opens the model.
    hook = """
import multiprocessing, os, sys
def watch(event, args):
    if event == "open" and str(args[0]).endswith("model.safetensors") and multiprocessing.parent_process():
        os.kill(os.getpid(), 9)
sys.addaudithook(watch)
"""
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    ended = run_with_fault(cohort, out, model, "")
    assert "WorkerError: a second process ended before it began its series" in ended.stderr
    monkeypatch.undo()
    assert run(cohort, out, model).counts == {"failed": 1, "ok": 4}


@pytest.mark.parametrize("limit", [200, 6_000])
def test_full_disk_ends_clearly_and_the_run_goes_on_later(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path, limit: int
) -> None:
    out = tmp_path / "out"
    # The kernel refuses what goes beyond this size with an error, as it does on a full disk.
    fault = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))"
    ended = run_with_fault(cohort, out, model_path, fault)
    assert ended.returncode == 1
    assert re.search(r"StoreError: .*cannot be (written|used)", ended.stderr.splitlines()[-1]), ended.stderr
    run(cohort, out, model_path)
    assert differences(out, unbroken) == []


@pytest.mark.parametrize("begun", [False, True])
def test_read_only_output_ends_clearly_and_loses_nothing(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path, begun: bool
) -> None:
    out = tmp_path / "out"
    if begun:
        shutil.copytree(unbroken, out)
    out.mkdir(exist_ok=True)
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    # A mount of its own, gone with the process: permissions alone do not stop root.
    mount = f"mount --bind '{out}' '{out}' && mount -o remount,bind,ro '{out}'"
    command = f"{mount} || exit 77; exec '{sys.executable}' -m cohortseg infer '{cohort}' -o '{out}' --no-resume"
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", f"{command} --model '{model_path}'"],
        check=False,
        timeout=500,
        capture_output=True,
        text=True,
    )
    if "unshare" in ended.stderr or ended.returncode == 77:
        pytest.skip(f"nothing can be mounted here: {ended.stderr}")
    assert ended.returncode == 1
    assert "cannot be used as an output folder: [Errno 30] Read-only file system" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert run(cohort, out, model_path).num_done == (0 if begun else 5)


def test_file_that_comes_back_is_tried_again(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    root = tmp_path / "cohort"
    shutil.copytree(cohort, root)
    records = scan_cohort(root).series

    progress = hiding(root / records[0].files[0], tmp_path / "away.dcm")
    config = InferConfig(engine="local")
    first = infer_cohort(root, out, config=config, model_path=model_path, progress=progress)
    assert "0000.dcm: cannot be read" in first.burden["reason"][0]
    again = run(root, out, model_path)
    assert (again.num_done, again.burden["status"][0]) == (1, "ok"), "the same file, unchanged, is there again"


def test_series_that_found_no_memory_is_tried_again(
    cohort: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_args: object, **_kwargs: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("cohortseg.dicom.pixels.pixel_array", no_memory)
        assert run(cohort, tmp_path / "out", model_path).counts == {"failed": 5}
    assert run(cohort, tmp_path / "out", model_path).counts == {"failed": 1, "ok": 4}


def test_unexpected_error_is_a_row_that_quotes_no_header(
    cohort: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: object) -> None:
        raise KeyError(name)

    name = "Secret^Name"
    caplog.set_level("DEBUG", "cohortseg")
    monkeypatch.setattr("cohortseg.infer.job.segment_series", broken)
    summary = run(cohort, tmp_path / "out", model_path)
    assert summary.counts == {"failed": 5}
    assert summary.burden["reason"][0].startswith("unexpected KeyError in test_infer.py:")
    assert "in broken" in caplog.text, "where it was, for whoever repairs it"
    assert "Secret" not in caplog.text + "".join(summary.burden["reason"])


def test_copies_that_came_later_are_in_the_flags(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "out", tmp_path / "cohort"
    shutil.copytree(cohort, root)
    run(root, out, model_path)
    shutil.copy(root / "A1/0000.dcm", root / "A1/copy.dcm")
    again = run(root, out, model_path)
    assert again.num_done == 1
    assert "duplicates_dropped" in again.burden["qc_flags"][0]


def test_cohort_on_a_lost_mount_ends_the_run(
    cohort: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There even the question whether a folder exists is an error; a want of open files is none of the cohort's."""
    out, root = tmp_path / "out", tmp_path / "cohort"
    shutil.copytree(cohort, root)
    config = InferConfig(engine="local")

    def failing(call: Callable[..., Any], code: int) -> Callable[..., Any]:
        def called(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).startswith(str(root)):
                raise OSError(code, os.strerror(code), str(path))
            return call(path, *arguments, **options)

        return called

    def failing_with(code: int) -> Callable[[str], AbstractContextManager[Callable[..., None]]]:
        @contextmanager
        def progress(title: str) -> Iterator[Callable[..., None]]:
            with monkeypatch.context() as patch:
                if title == "Segmenting":
                    root.rename(tmp_path / "unmounted")
                    patch.setattr(os, "stat", failing(os.stat, code))
                    patch.setattr(os, "scandir", failing(os.scandir, code))
                yield lambda *_: None

        return progress

    with pytest.raises(StoreError, match="the cohort has gone"):
        infer_cohort(root, out, config=config, model_path=model_path, progress=failing_with(errno.ENOTCONN))
    assert not suspects(out)
    (tmp_path / "unmounted").rename(root)
    ended = infer_cohort(root, out, config=config, model_path=model_path, progress=failing_with(errno.EMFILE))
    assert ended.counts == {"failed": 5}


@pytest.mark.parametrize("resume", [True, False])
def test_a_cohort_that_vanishes_while_it_is_scanned_costs_no_result(
    cohort: Path, model_path: Path, tmp_path: Path, resume: bool
) -> None:
    out, root = tmp_path / "out", tmp_path / "cohort"
    shutil.copytree(cohort, root)
    run(root, out, model_path)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    @contextmanager
    def progress(title: str) -> Iterator[Callable[..., None]]:
        def report(done: int, *_: Any) -> None:
            if title == "Scanning" and done == 4:
                root.rename(tmp_path / "unmounted")

        yield report

    with pytest.raises(StoreError, match="the cohort has gone"):
        infer_cohort(
            root, out, config=InferConfig(engine="local", resume=resume), model_path=model_path, progress=progress
        )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("leaves_a_folder", [False, True])
def test_vanished_cohort_ends_the_run_and_fails_no_series(
    cohort: Path, model_path: Path, tmp_path: Path, leaves_a_folder: bool
) -> None:
    """A mount that is lost leaves the empty folder that it was mounted on."""
    out, root = tmp_path / "out", tmp_path / "cohort"
    shutil.copytree(cohort, root)

    @contextmanager
    def progress(title: str) -> Iterator[Callable[..., None]]:
        with hiding(root, tmp_path / "unmounted")(title) as report:
            if title == "Segmenting" and leaves_a_folder:
                root.mkdir()
            yield report

    with pytest.raises(StoreError, match="the cohort has gone"):
        infer_cohort(root, out, config=InferConfig(engine="local"), model_path=model_path, progress=progress)
    assert not suspects(out)
    if leaves_a_folder:
        root.rmdir()
    (tmp_path / "unmounted").rename(root)
    assert run(root, out, model_path).counts == {"failed": 1, "ok": 4}


def test_output_inside_the_cohort_is_refused(cohort: Path, model_path: Path) -> None:
    with pytest.raises(ConfigError, match="must not lie inside the cohort"):
        run(cohort, cohort / "results", model_path)
    assert not (cohort / "results").exists()


# workers


@pytest.mark.parametrize(
    ("settings", "num_pending", "cores", "address", "expected"),
    [
        ({}, 63, 2.0, None, "local"),
        ({}, 64, 2.0, None, "ray"),
        ({}, 64, 1.0, None, "local"),
        ({"workers": 2}, 1, 2.0, None, "ray"),
        ({"workers": 1}, 1000, 2.0, None, "local"),
        ({}, 1, 2.0, "10.0.0.1:6379", "ray"),
        ({"engine": "local"}, 1000, 2.0, None, "local"),
        ({"engine": "ray"}, 1, 1.0, None, "ray"),
    ],
)
def test_ray_is_used_where_it_is_asked_for_or_repays_its_start(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    num_pending: int,
    cores: float,
    address: str | None,
    expected: str,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine = Resources(nodes=((cores, 0.0),), where="this machine")
    monkeypatch.setattr("cohortseg.infer.run.local_resources", lambda: machine)
    assert choose_engine(InferConfig(**settings), num_pending, address) == expected


def test_lost_workers_are_told_once_and_so_are_their_return_and_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes_left = [2, 1, 1, 0, 2]

    def resources() -> Resources:
        return Resources(nodes=((1.0, 0.0),) * nodes_left.pop(0), where="the cluster")

    monkeypatch.setattr("cohortseg.infer.run.connected_resources", resources)
    monkeypatch.setattr("cohortseg.infer.run.head_answers", lambda: bool(nodes_left))
    monkeypatch.setattr("cohortseg.infer.run.WATCH_EVERY_S", 0.01)
    caplog.set_level(logging.INFO, logger="cohortseg")  # whatever a command before has set
    deadline = time.monotonic() + 30
    with room_watched(2, 0.0, lambda: True):
        while len(caplog.messages) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages == [
        "Ray has room for 1 of 2 workers now",
        "Ray has room for 0 of 2 workers now; waiting up to 30 minutes for more",
        "Ray has room for 2 of 2 workers now",
        "Ray's head node does not answer: if that lasts, this run ends in a few minutes; run the same command again",
    ]


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_cluster_that_is_full_of_other_jobs_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_begun: bool
) -> None:
    looks: list[bool] = []
    monkeypatch.setattr("cohortseg.infer.run.connected_resources", lambda: Resources(((2.0, 0.0),), "the cluster"))
    monkeypatch.setattr("cohortseg.infer.run.head_answers", lambda: looks.append(True) or True)
    monkeypatch.setattr("cohortseg.infer.run.WATCH_EVERY_S", 0.01)
    monkeypatch.setattr("cohortseg.infer.run._SLOW_START_S", 0.02)
    caplog.set_level(logging.INFO, logger="cohortseg")
    with room_watched(2, 0.0, lambda: has_begun):
        deadline = time.monotonic() + 30
        while len(looks) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    told = [message for message in caplog.messages if "other jobs hold what there is; waiting up to 30" in message]
    assert caplog.messages == told
    assert len(told) == (0 if has_begun else 1)


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([(4, 0)], None, (4, 0)),
        ([(4, 0)], 2, (2, 0)),
        ([(16, 1)], None, (4, 1 / 4)),
        ([(16, 1)], 8, (8, 1 / 8)),
        ([(2, 1)], None, (2, 1 / 2)),
        ([(16, 2)], 2, (2, 1)),
        ([(8, 1), (8, 1)], None, (8, 1 / 4)),
        ([(2, 1), (8, 1)], None, (6, 1 / 4)),
        ([(2, 1), (8, 1)], 6, (6, 1 / 4)),
    ],
)
def test_each_worker_has_a_core_and_an_equal_part_of_the_gpus(
    nodes: list[tuple[float, float]], asked: int | None, expected: tuple[int, float]
) -> None:
    assert worker_shares(InferConfig(workers=asked), Resources(nodes=tuple(nodes), where="the cluster")) == expected


def test_an_alternative_is_measured_where_the_preferred_series_of_a_study_shows_no_lung(
    model_path: Path, tmp_path: Path
) -> None:
    def abdomen(shape: tuple[int, int, int]) -> NDArray[np.int16]:
        return np.where(ill_body(shape) > -980, 40, -1000).astype(np.int16)

    cohort, out, spacing_mm = tmp_path / "cohort", tmp_path / "out", (6.0, 3.0, 3.5)
    write_series(cohort / "a", shape=(9, 96, 80), spacing_mm=spacing_mm, hu=abdomen, series="1")
    for series, planes in (("2", 4), ("3", 8)):
        write_series(cohort / series, shape=(planes, 96, 80), spacing_mm=spacing_mm, hu=ill_body, series=series)
    assert [record.n_slices for record in scan_cohort(cohort).series if record.decision == "selected"] == [9]
    summary = run(cohort, out, model_path)
    assert (dict(summary.counts), summary.num_done) == ({"not_evaluable": 1, "ok": 1}, 2)
    measured = read_table(out / "burden.parquet", BURDEN).filter(pl.col("status") == "ok").row(0, named=True)
    assert (measured["n_slices"], "another_failed" in measured["qc_flags"]) == (8, True)
    assert read_table(out / "timeline.parquet", TIMELINE)["series_key"].to_list() == [measured["series_key"]]
    manifest = read_table(out / "manifest.parquet", MANIFEST)
    assert manifest.sort("n_slices")["decision"].to_list() == ["alternative", "selected", "selected"]
    assert measured["series_key"] in manifest.sort("n_slices")["reason"][0]
    assert run(cohort, out, model_path).num_done == 0
    shutil.rmtree(cohort / "a")
    assert dict(run(cohort, out, model_path).counts) == {"ok": 1}
    assert read_table(out / "burden.parquet", BURDEN)["qc_flags"].to_list()[0].count("another_failed") == 0


def test_an_alternative_is_measured_too_where_the_preferred_series_shows_the_lung_bases_only(
    model_path: Path, tmp_path: Path
) -> None:
    cohort, out, spacing_mm = tmp_path / "cohort", tmp_path / "out", (6.0, 3.0, 3.5)

    def abdomen(shape: tuple[int, int, int]) -> NDArray[np.int16]:
        hu = ill_body(shape)
        hu[:-4][hu[:-4] > -900] = 40
        return hu

    write_series(cohort / "abdomen", shape=(24, 96, 80), spacing_mm=spacing_mm, hu=abdomen, series="1")
    above = (-10.0, -20.0, 220.0)
    write_series(cohort / "chest", shape=(20, 96, 80), spacing_mm=spacing_mm, origin=above, hu=ill_body, series="2")
    assert [record.n_slices for record in scan_cohort(cohort).series if record.decision == "selected"] == [24]
    assert dict(run(cohort, out, model_path).counts) == {"ok": 2}
    burden = read_table(out / "burden.parquet", BURDEN).sort("n_slices")
    chest, bases = burden.rows(named=True)
    assert bases["lung_volume_ml"] < 800 < chest["lung_volume_ml"]
    assert "another_failed" in chest["qc_flags"]
    assert read_table(out / "timeline.parquet", TIMELINE)["series_key"].to_list() == [chest["series_key"]]
    assert run(cohort, out, model_path).num_done == 0


def test_where_the_lungs_go_on_a_series_that_reaches_farther_is_measured_too(model_path: Path, tmp_path: Path) -> None:
    cohort, out, spacing_mm = tmp_path / "cohort", tmp_path / "out", (6.0, 3.0, 3.5)
    whole_hu = ill_body((20, 96, 80))
    for z in (0, 1, -2, -1):
        whole_hu[z][whole_hu[z] > -900] = 40
    write_series(cohort / "whole", shape=(20, 96, 80), spacing_mm=spacing_mm, hu=whole_hu, series="1")
    thin_hu = np.repeat(whole_hu, 2, axis=0)[:32]
    write_series(cohort / "thin", shape=thin_hu.shape, spacing_mm=(3.0, 3.0, 3.5), hu=thin_hu, series="2")
    assert [record.n_slices for record in scan_cohort(cohort).series if record.decision == "selected"] == [32]
    run(cohort, out, model_path)
    part, whole = read_table(out / "burden.parquet", BURDEN).sort("spacing_z_mm").rows(named=True)
    assert "lung_cut_at_end_slice" in part["qc_flags"]
    assert part["lung_volume_ml"] < whole["lung_volume_ml"]
    assert read_table(out / "timeline.parquet", TIMELINE)["series_key"].to_list() == [whole["series_key"]]


def test_pictures_turned_off_segment_nothing_again_and_turned_on_what_lacks_them(
    cohort: Path, model_path: Path, tmp_path: Path
) -> None:
    out, chosen = tmp_path / "out", {"select": ("patient_id = A",)}
    assert run(cohort, out, model_path, **chosen).num_done == 2
    assert run(cohort, out, model_path, **chosen, overlays=False).num_done == 0
    next(path for path in out.glob("pictures/*.png") if path.stem != "trajectories").unlink()
    assert run(cohort, out, model_path, **chosen, overlays=False).num_done == 1, "its result has lost a file"
    assert run(cohort, out, model_path, **chosen).num_done == 1
    assert len(list(out.glob("pictures/*.png"))) == 3


def test_the_address_of_no_cluster_is_refused_before_results_are_removed(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    config = InferConfig(resume=False)
    with pytest.raises(ConfigError, match="no Ray cluster answers"):
        infer_cohort(cohort, out, config=config, model_path=model_path, address=address)
    assert differences(out, unbroken) == []
    assert run(cohort, out, model_path).num_done == 0
    chosen = InferConfig(retry_failed=True, select=("patient_id = A",))
    nothing = infer_cohort(cohort, out, config=chosen, model_path=model_path, address=address)
    assert nothing.num_done == 0, "no cluster is needed to do nothing"


def test_local_engine_refuses_workers(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine local is one process, got 4 workers"):
        run(cohort, tmp_path / "out", model_path, workers=4)


def test_series_are_segmented_side_by_side_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=10)
    shares: list[int] = []

    def segment_and_commit(_job: Job, _model: object, record: Any, between_steps: Callable[[], None]) -> Done:
        together.wait()
        between_steps()
        shares.append(torch.get_num_threads())
        together.wait()
        return Done(record.series_key, "ok", 0)

    monkeypatch.setattr(stream, "segment_and_commit", segment_and_commit)
    records = [SimpleNamespace(series_key=str(number)) for number in range(6)]
    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        done = list(stream.segment_many(None, None, records))
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(cores)
    assert sorted(one.series_key for one in done) == [record.series_key for record in records]
    assert shares == [1] * 6
