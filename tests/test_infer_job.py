"""What a result depends on: what tells a run that a series must be done anew, and a node that it is not of this run."""

from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from phantoms import ill_body, write_series
from runs import only_series

from cohortseg.cluster import PACKAGE_SHA256, require_same_package
from cohortseg.compare.on_ray import _run_on_worker
from cohortseg.config import EXECUTION_SETTINGS, InferConfig, ScanConfig
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import ConfigError, ModelError, StoreError
from cohortseg.infer import job as jobs
from cohortseg.infer.attempts import attempts_noted
from cohortseg.infer.claim import claimed
from cohortseg.infer.commit import committed_keys
from cohortseg.infer.job import Job, segment_and_commit
from cohortseg.infer.run import _Worker
from cohortseg.infer.stream import load_job_model
from cohortseg.store.layout import MASKS
from cohortseg.store.masks import create_mask_store
from cohortseg.store.schemas import SLICES
from cohortseg.train.fit import _train_worker
from cohortseg.weights import load_model


@pytest.fixture
def record(tmp_path: Path) -> SeriesRecord:
    write_series(tmp_path)
    return only_series(tmp_path)


def job(tmp_path: Path, **settings: object) -> Job:
    config = InferConfig(**settings)
    return Job(root=tmp_path, out=tmp_path / "out", model_path=None, model_sha256="0" * 64, config=config)


def test_settings_of_the_result_are_in_its_token_and_those_of_the_work_are_not(
    tmp_path: Path, record: SeriesRecord
) -> None:
    token = job(tmp_path).token(record)
    assert job(tmp_path, flips=False).token(record) != token
    work = {"engine": "local", "workers": 2, "batch_size": 1, "resume": False, "retry_failed": True, "overlays": False}
    assert job(tmp_path, **work, max_attempts=1, auto_ray_series=2).token(record) == token
    assert job(tmp_path).token(replace(record, patient_id="other")) != token
    assert {item.name for item in fields(InferConfig)} > EXECUTION_SETTINGS | {item.name for item in fields(ScanConfig)}


@pytest.mark.parametrize("version", ["LUNG_METHOD", "MEASURES", "__version__"])
def test_another_method_is_another_token(
    tmp_path: Path, record: SeriesRecord, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    token = job(tmp_path).token(record)
    monkeypatch.setattr(jobs, version, "another")
    assert job(tmp_path).token(record) != token


@pytest.mark.parametrize("change", [{"version": 0}, {"columns": SLICES.columns[:-1]}])
def test_another_schema_is_another_token(
    tmp_path: Path, record: SeriesRecord, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """Also one whose version was forgotten: its new column would be null in all rows of an older run."""
    token = job(tmp_path).token(record)
    monkeypatch.setattr(jobs, "SLICES", replace(SLICES, **change))
    assert job(tmp_path).token(record) != token


def test_a_node_with_another_cohortseg_does_no_work(tmp_path: Path) -> None:
    mine = job(tmp_path)
    assert mine.package_sha256 == PACKAGE_SHA256
    require_same_package(mine.package_sha256)
    with pytest.raises(ConfigError, match="this node has another cohortseg"):
        _Worker(replace(mine, package_sha256="0" * 64))
    with pytest.raises(ConfigError, match="this node has another cohortseg"):
        _train_worker({"package_sha256": "0" * 64})
    with pytest.raises(ConfigError, match="this node has another cohortseg"):
        _run_on_worker(Mock(), Mock(), "0" * 64)


def test_a_model_file_that_is_not_the_one_of_the_run_is_refused(tmp_path: Path) -> None:
    sha256 = load_model(None).sha256
    assert load_job_model(replace(job(tmp_path), model_sha256=sha256)).sha256 == sha256
    with pytest.raises(ModelError, match="not the one the run was started with"):
        load_job_model(job(tmp_path))


def test_a_worker_whose_run_ends_while_it_works_commits_nothing(tmp_path: Path, model_path: Path) -> None:
    """What the next run has made already would be replaced by what was asked for before."""
    write_series(tmp_path / "cohort", shape=(4, 96, 80), spacing_mm=(5.0, 3.0, 3.5), hu=ill_body)
    model, record, out = load_model(model_path), only_series(tmp_path / "cohort"), tmp_path / "out"
    mine = replace(job(tmp_path), root=tmp_path / "cohort", model_sha256=model.sha256)
    with claimed(out), ExitStack() as this_run:
        create_mask_store(out / MASKS)
        this_run.enter_context(attempts_noted(out, mine.run_id))
        with pytest.raises(StoreError, match="this run has ended, or another one has begun"):
            segment_and_commit(mine, model, record, this_run.close)
        assert not mine.is_done(record)
        assert not committed_keys(out)
        with attempts_noted(out, mine.run_id):
            assert segment_and_commit(mine, model, record, lambda: None).status == "ok"
        assert mine.is_done(record)
