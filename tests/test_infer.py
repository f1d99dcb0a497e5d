"""Segmentation of single series against hand-worked phantoms, and the commit protocol: killed, poisoned, repeated."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from phantoms import body_hu, write_series

from cohortseg.cluster import Resources, require_workers
from cohortseg.config import CanonicalConfig, InferConfig, ModelConfig
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import ConfigError, StoreError
from cohortseg.infer.commit import (
    SeriesResult,
    begin_attempt,
    claimed,
    commit,
    committed_slices,
    count_attempts,
    is_done,
    read_committed,
    result_token,
    suspects,
    withdraw_attempts,
)
from cohortseg.infer.run import room_watched
from cohortseg.infer.segmenter import segment_series
from cohortseg.models.discriminator import Discriminator
from cohortseg.models.segmenter import Segmenter
from cohortseg.pipeline import InferSummary, infer_cohort
from cohortseg.store.masks import SeriesMasks, create_mask_store, read_masks
from cohortseg.store.schemas import BURDEN, MANIFEST, PATIENTS, SLICES, TIMELINE
from cohortseg.store.tables import read_table
from cohortseg.volume import Volume
from cohortseg.weights import ModelCard, Prediction, load_model, save_model

SHAPE, SPACING_MM = (6, 96, 80), (5.0, 3.0, 3.5)
VOXEL_ML = 5.0 * 3.0 * 3.5 / 1000
LESION = np.s_[1:4, 40:58, 16:25]
"""In the right lung (left of the image), where `body_hu` has lung on every slice."""
CONSOLIDATED = np.s_[1:4, 49:58, 16:25]


def ill_body(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """Return a body with GGO at -500 HU and, below it, consolidation at -50 HU in the right lung."""
    hu = body_hu(shape)
    hu[LESION] = -500
    hu[CONSOLIDATED] = -50
    return hu


class Thresholds:
    """A perfect model of the phantom: every class by its HU, so that results can be worked out by hand."""

    name, sha256, device = "thresholds", "0" * 64, torch.device("cpu")
    config = SimpleNamespace(canonical=CanonicalConfig(size=192))

    def predict(self, images: torch.Tensor, *, flips: bool = False) -> Prediction:
        del flips
        low, high = self.config.canonical.window_hu
        hu = images[:, 0] * (high - low) + low
        ggo, consolidation = (hu > -560) & (hu < -440), (hu > -110) & (hu < 10)
        prob = torch.stack((~ggo & ~consolidation, ggo, consolidation), dim=1).float()
        return Prediction(prob, torch.full_like(images, 0.25))


class Doubtful(Thresholds):
    """The same, but sure of each class to 80 % only, and of another mind about mirrored consolidation."""

    def predict(self, images: torch.Tensor, *, flips: bool = False) -> Prediction:
        prob, confidence, _ = super().predict(images)
        return Prediction(0.8 * prob + 0.2 * prob.roll(1, dims=1), confidence, prob[:, 2:] if flips else None)


@contextmanager
def silent(_title: str) -> Iterator[object]:
    yield lambda _done, _total, _text: None


def only_record(root: Path) -> SeriesRecord:
    (record,) = scan_cohort(root).series
    assert record.decision == "selected", record.reason
    return record


def segmented(record: SeriesRecord, volume: Volume, model: object) -> SeriesResult:
    return segment_series(record, volume, model, InferConfig())


def segment(root: Path, model: object | None = None) -> tuple[SeriesResult, NDArray[np.int16]]:
    record = only_record(root)
    volume = read_volume(record, root)
    return segmented(record, volume, model or Thresholds()), volume.volume_hu


# one series


def test_burden_of_a_phantom_by_hand(tmp_path: Path) -> None:
    write_series(tmp_path, shape=SHAPE, spacing_mm=SPACING_MM, hu=ill_body)
    result, _ = segment(tmp_path)
    row = result.burden
    assert row["status"] == "ok"
    inside = result.masks.lungs > 0
    assert inside[LESION].mean() > 0.9, "the lung mask must keep the lesion"
    # Each is 3 slices of 9 rows and 9 columns; the model misses some of the edges.
    assert row["ggo_volume_ml"] == pytest.approx(3 * 9 * 9 * VOXEL_ML, rel=0.25)
    assert row["consolidation_volume_ml"] == pytest.approx(3 * 9 * 9 * VOXEL_ML, rel=0.25)
    assert row["po_right_pct"] > 20 * row["po_left_pct"], "the lesion is in the right lung"
    assert (result.masks.labels[2, 42:47, 18:23] == 1).all()
    assert (result.masks.labels[2, 51:56, 18:23] == 2).all()
    assert row["lung_volume_ml"] == pytest.approx(inside.sum() * VOXEL_ML)
    assert row["confidence"] == pytest.approx(0.25, abs=0.02)
    assert (row["n_slices"], row["model_sha256"], row["reason"]) == (6, "0" * 64, None)
    assert [slice_["slice_index"] for slice_ in result.slices] == list(range(6))
    assert [slice_["position_mm"] for slice_ in result.slices] == pytest.approx([100 + 5 * z for z in range(6)])
    assert sum(s["ggo_area_mm2"] for s in result.slices) * 5 / 1000 == pytest.approx(row["ggo_volume_ml"])
    assert result.picture_png.startswith(b"\x89PNG")


def test_what_the_model_doubts_is_measured_by_hand(tmp_path: Path) -> None:
    write_series(tmp_path, shape=SHAPE, spacing_mm=SPACING_MM, hu=ill_body)
    row = segment(tmp_path, Doubtful())[0].burden
    # half of the lesion is consolidation; every pixel is 0.8 one class and 0.2 another
    assert row["flip_disagreement_pct"] == pytest.approx(50, abs=8)
    assert row["lung_entropy"] == pytest.approx(-(0.2 * np.log(0.2) + 0.8 * np.log(0.8)) / np.log(3), abs=1e-4)
    certain = segment(tmp_path)[0].burden
    assert certain["lung_entropy"] == pytest.approx(0, abs=1e-6)
    assert certain["flip_disagreement_pct"] is None, "this model did not look at mirror images"


@pytest.mark.parametrize(
    ("orientation", "origin", "turn"),
    [
        pytest.param((-1, 0, 0, 0, 1, 0), (79 * 3.5, 0, 100), np.s_[:, :, ::-1], id="mirrored"),
        pytest.param((1, 0, 0, 0, -1, 0), (0, 95 * 3.0, 100), np.s_[:, ::-1, :], id="upside-down"),
        pytest.param((0, 1, 0, 1, 0, 0), (0, 0, 100), "transpose", id="transposed"),
    ],
)
def test_mask_lies_on_the_series_own_grid(tmp_path: Path, orientation: tuple, origin: tuple, turn: object) -> None:
    stored = ill_body(SHAPE)
    reference = {"shape": SHAPE, "spacing_mm": SPACING_MM, "hu": stored, "origin": (0, 0, 100)}
    write_series(tmp_path / "upright", **reference)
    upright, _ = segment(tmp_path / "upright")
    turned_hu = stored.swapaxes(1, 2) if turn == "transpose" else stored[turn]
    spacing = (5.0, 3.5, 3.0) if turn == "transpose" else SPACING_MM
    # Slices go against the normal where turning has reversed it, so that the anatomy stays the same.
    positions = [(*origin[:2], 100 + 5 * z) for z in range(SHAPE[0])]
    write_series(
        tmp_path / "turned",
        shape=turned_hu.shape,
        spacing_mm=spacing,
        hu=turned_hu,
        orientation=orientation,
        positions=positions,
    )
    turned, volume_hu = segment(tmp_path / "turned")
    assert np.array_equal(volume_hu, turned_hu), "the volume is as the files have it"
    for name in ("labels", "lungs"):
        expected = getattr(upright.masks, name)
        expected = expected.swapaxes(1, 2) if turn == "transpose" else expected[turn]
        assert np.array_equal(getattr(turned.masks, name), expected)
    numbers = [name for name, value in upright.burden.items() if isinstance(value, float) and "spacing" not in name]
    assert {n: turned.burden[n] for n in numbers} == pytest.approx({n: upright.burden[n] for n in numbers})


def test_single_slice_is_measured_by_area(tmp_path: Path) -> None:
    hu = ill_body(SHAPE)[2:3]
    write_series(tmp_path, shape=hu.shape, spacing_mm=SPACING_MM, hu=hu)
    result, _ = segment(tmp_path)
    assert result.burden["status"] == "ok"
    assert "single_slice" in result.burden["qc_flags"]
    assert result.burden["po_pct"] > 5
    assert result.burden["lung_volume_ml"] is result.burden["po_right_upper_pct"] is None
    assert result.burden["spacing_z_mm"] is None


def test_slices_without_lung_cost_no_forward_pass(tmp_path: Path) -> None:
    class Counting(Thresholds):
        seen = 0

        def predict(self, images: torch.Tensor, *, flips: bool = False) -> Prediction:
            self.seen += len(images)
            return super().predict(images, flips=flips)

    hu, model = ill_body((12, *SHAPE[1:])), Counting()
    write_series(tmp_path, shape=hu.shape, spacing_mm=SPACING_MM, hu=np.where(np.arange(12)[:, None, None] < 6, hu, 40))
    result, _ = segment(tmp_path, model)
    assert model.seen == result.burden["n_lung_slices"] == 6


def test_bfloat16_agrees_with_float32() -> None:
    root = Path(__file__).parents[1] / "sample_data/cohort/dicom"
    truth = pl.read_parquet(root.parent / "truth.parquet").sort("consolidation_volume_ml")
    record = next(r for r in scan_cohort(root).series if r.series_instance_uid == truth["series_instance_uid"][-1])
    volume = read_volume(record, root)
    exact, fast = (segmented(record, volume, load_model(bf16=bf16)) for bf16 in (False, True))
    for label in (1, 2):
        one, two = (result.masks.labels == label for result in (exact, fast))
        assert one.any()
        assert 2 * (one & two).sum() >= 0.99 * (one.sum() + two.sum())
    for name in ("ggo_pct", "consolidation_pct", "po_pct"):
        assert fast.burden[name] == pytest.approx(exact.burden[name], abs=0.1)


def test_no_lung_is_not_evaluable_and_never_zero(tmp_path: Path) -> None:
    hu = np.where(body_hu(SHAPE) < -900, -1000, 40).astype(np.int16)
    write_series(tmp_path, shape=SHAPE, spacing_mm=SPACING_MM, hu=hu)
    result, _ = segment(tmp_path)
    assert (result.burden["status"], result.burden["reason"]) == ("not_evaluable", "no lung was found in any slice")
    measured = [name for name in result.burden if name.endswith(("_ml", "_pct", "_hu"))]
    assert {result.burden[name] for name in measured} == {None}
    assert result.masks is None
    assert result.slices == ()


# the commit protocol


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    with claimed(tmp_path / "out"):
        create_mask_store(tmp_path / "out" / "masks.zarr")
        yield tmp_path / "out"


def result_of(status: str = "ok") -> SeriesResult:
    array = np.ones((1, 4, 4), np.uint8)
    row = dict.fromkeys(BURDEN.polars_schema) | {"status": status, "qc_flags": [], "po_pct": 1.5}
    masks = SeriesMasks(labels=array, lungs=array, attributes={}) if status == "ok" else None
    return SeriesResult(burden=row, masks=masks, picture_png=b"png" if masks else None)


def test_marker_is_valid_only_for_the_same_files_model_and_settings(out: Path) -> None:
    token = result_token("files", "model", {"flips": True})
    commit(out, "k", token, result_of())
    assert is_done(out, "k", token)
    others = [
        ("other", "model", {"flips": True}),
        ("files", "other", {"flips": True}),
        ("files", "model", {"flips": False}),
    ]
    assert not any(is_done(out, "k", result_token(*other)) for other in others)
    burden, (slices,) = read_committed(out, ["k"]), committed_slices(out, ["k"])
    assert (burden.schema, slices.schema) == (BURDEN.polars_schema, SLICES.polars_schema)
    assert burden["po_pct"].to_list() == [1.5]


def test_result_without_its_masks_or_with_a_cut_marker_is_not_done(out: Path) -> None:
    commit(out, "k", "t", result_of())
    marker = out / ".state/rows/k.json"
    text = marker.read_text()
    marker.write_text(text[: len(text) // 2])
    assert not is_done(out, "k", "t")
    marker.write_text(text)
    (out / "masks.zarr/k").rename(out / "elsewhere")
    assert not is_done(out, "k", "t")
    with pytest.raises(StoreError, match="series other has no result"):
        read_committed(out, ["other"])


def test_failed_result_takes_the_place_of_an_older_mask(out: Path) -> None:
    commit(out, "k", "t", result_of())
    commit(out, "k", "t2", result_of("failed"))
    assert is_done(out, "k", "t2")
    assert not (out / "masks.zarr/k").exists()
    assert not (out / "pictures/k.png").exists()


def test_attempts_count_for_one_result_of_one_run_and_end_with_it(out: Path) -> None:
    for run_id in ("earlier", "this", "this"):
        begin_attempt(out, "k", "t", run_id)
    assert count_attempts(out, "k", "t", "this") == 2, "what ended the earlier run may have meant the run"
    assert count_attempts(out, "k", "changed", "this") == 0
    withdraw_attempts(out, "k", "this")
    assert (count_attempts(out, "k", "t", "this"), suspects(out)) == (0, {"k"})
    commit(out, "k", "t", result_of())
    assert not suspects(out)


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    refusals: list[str] = []

    def second() -> None:
        try:
            with claimed(tmp_path):
                pass
        except StoreError as error:
            refusals.append(str(error))

    with claimed(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"another cohortseg run is writing here (process {os.getpid()} on " in refusals[0]
    second()
    assert len(refusals) == 1, "the lock ends with the run"


# whole runs, in this process


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    networks = ModelConfig(decoder_channels=(16, 16, 16, 16), codebook_size=8, code_dim=8, discriminator_channels=4)
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
            spacing_mm=SPACING_MM,
            hu=ill_body,
            patient_id=patient,
            study_date=f"2020040{day}",
        )
    paths[-1].write_bytes(paths[-1].read_bytes()[:-5000])
    return root


def run(cohort: Path, out: Path, model_path: Path, **settings: object) -> InferSummary:
    config = InferConfig(engine="local", **settings)
    return infer_cohort(cohort, out, config=config, model_path=model_path, progress=silent)


@pytest.fixture(scope="session")
def unbroken(cohort: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    run(cohort, out, model_path)
    return out


def assert_same_results(out: Path, reference: Path) -> None:
    for schema in (MANIFEST, BURDEN, SLICES, TIMELINE, PATIENTS):
        tables = [read_table(folder / f"{schema.name}.parquet", schema) for folder in (out, reference)]
        first, second = (table.drop("runtime_s", strict=False) for table in tables)
        assert first.equals(second), schema.name
    for key in read_table(reference / "burden.parquet", BURDEN).filter(pl.col("status") == "ok")["series_key"]:
        ours, theirs = (read_masks(folder / "masks.zarr", key) for folder in (out, reference))
        assert np.array_equal(ours.labels, theirs.labels)
        assert ours.attributes == theirs.attributes
        assert (out / f"pictures/{key}.png").read_bytes() == (reference / f"pictures/{key}.png").read_bytes()


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
    marker = min((unbroken / ".state/rows").iterdir())
    before = marker.stat().st_mtime_ns
    again = run(cohort, unbroken, model_path)
    assert (again.num_done, again.complete) == (0, False)
    assert marker.stat().st_mtime_ns == before
    os.utime(cohort / "A1" / "0000.dcm", ns=(1, 1))
    changed = run(cohort, unbroken, model_path)
    assert changed.num_done == 1, "only the series whose file changed"
    assert run(cohort, unbroken, model_path, resume=False).num_done == 5


FAULTY = """
import os, signal, sys, time
from pathlib import Path
import cohortseg.infer.job as job
from cohortseg.config import InferConfig
from cohortseg.pipeline import infer_cohort
from contextlib import contextmanager

@contextmanager
def silent(_title):
    yield lambda *_: None

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
    infer_cohort(cohort, out, config=InferConfig(engine="local"), model_path=model, progress=silent)
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
    done = {path.stem for path in (out / ".state/rows").iterdir()}
    assert 1 <= len(done) < 5, "some were done, and the third was on its way"
    assert not (out / "burden.parquet").exists()
    assert bool(suspects(out)) == (name == "SIGKILL"), "who is asked to stop leaves nothing open"
    assert run(cohort, out, model_path).num_done == 5 - len(done)
    assert run(cohort, out, model_path).num_done == 0
    run(cohort, unbroken, model_path)
    assert_same_results(out, unbroken)


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
    run(cohort, unbroken, model_path)
    assert_same_results(out, unbroken)


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
    out, away = tmp_path / "out", tmp_path / "away.dcm"
    root = tmp_path / "cohort"
    shutil.copytree(cohort, root)
    records = scan_cohort(root).series

    @contextmanager
    def progress(title: str) -> Iterator[object]:
        if title == "Segmenting":
            (root / records[0].files[0]).rename(away)
        yield lambda *_: None
        if title == "Segmenting":
            away.rename(root / records[0].files[0])

    config = InferConfig(engine="local")
    first = infer_cohort(root, out, config=config, model_path=model_path, progress=progress)
    assert "0000.dcm: cannot be read" in first.burden["reason"][0]
    again = run(root, out, model_path)
    assert (again.num_done, again.burden["status"][0]) == (1, "ok"), "the same file, unchanged, is there again"


def test_vanished_cohort_ends_the_run_and_fails_no_series(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "out", tmp_path / "cohort"
    shutil.copytree(cohort, root)

    @contextmanager
    def progress(title: str) -> Iterator[object]:
        if title == "Segmenting":
            root.rename(tmp_path / "unmounted")
        yield lambda *_: None

    with pytest.raises(StoreError, match="the cohort has gone"):
        infer_cohort(root, out, config=InferConfig(engine="local"), model_path=model_path, progress=progress)
    assert not suspects(out)
    (tmp_path / "unmounted").rename(root)
    assert run(root, out, model_path).counts == {"failed": 1, "ok": 4}


def test_output_inside_the_cohort_is_refused(cohort: Path, model_path: Path) -> None:
    with pytest.raises(ConfigError, match="must not lie inside the cohort"):
        run(cohort, cohort / "results", model_path)
    assert not (cohort / "results").exists()


# workers


def test_lost_workers_are_told_once_and_so_are_their_return_and_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes_left = [2, 1, 1, 0, 2]

    def resources() -> Resources:
        return Resources(nodes=((2.0, 0.0),) * nodes_left.pop(0), where="the cluster")

    monkeypatch.setattr("cohortseg.infer.run.connected_resources", resources)
    monkeypatch.setattr("cohortseg.infer.run.head_answers", lambda: bool(nodes_left))
    monkeypatch.setattr("cohortseg.infer.run._WATCH_EVERY_S", 0.01)
    with room_watched(2, 2.0, 0.0):
        while len(caplog.messages) < 4:
            time.sleep(0.01)
    assert caplog.messages == [
        "Ray has room for 1 of 2 workers now",
        "Ray has room for 0 of 2 workers now; waiting up to 30 minutes for more",
        "Ray has room for 2 of 2 workers now",
        "Ray's head node is gone: this run ends in a minute; run the same command again",
    ]


def test_workers_that_do_not_fit_are_refused_with_the_flags_that_would() -> None:
    machine = Resources(nodes=((2.0, 0.0),), where="this machine")
    require_workers(8, 0.25, 0, machine)
    expected = r"8 workers x 1 CPU need 8 CPUs, this machine has 2; use --workers 2 or --cpus-per-worker 0.25"
    with pytest.raises(ConfigError, match=expected):
        require_workers(8, 1, 0, machine)
    with pytest.raises(
        ConfigError, match="2 workers x 1 CPU need 2 CPUs and 1 GPU need 2 GPUs, the cluster has 16 and 1"
    ):
        require_workers(2, 1, 1, Resources(nodes=((8.0, 1.0), (8.0, 0.0)), where="the cluster"))
    with pytest.raises(ConfigError, match="use --workers 2"):
        require_workers(3, 2, 0, replace(machine, nodes=((3.0, 0.0), (3.0, 0.0))))


def test_local_engine_refuses_workers(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine local is one process, got 4 workers"):
        run(cohort, tmp_path / "out", model_path, workers=4)
