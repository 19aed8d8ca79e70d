"""A whole job that is logged: a tracker that is added later remakes nothing, one that is away does no harm."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from worlds import SHORT, job_config

from upl_ray.errors import ConfigError
from upl_ray.pipeline.main import run
from upl_ray.report.page import PAGE
from upl_ray.report.tracking import EXPERIMENT


def test_a_finished_run_is_logged_later_and_once_and_nothing_is_made_again(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    storage, uri = tmp_path / "run", (tmp_path / "mlflow").as_uri()
    shutil.copytree(short_run["storage"], storage)
    page = (storage / PAGE).stat().st_mtime_ns
    for place in (uri, "http://127.0.0.1:9", uri):
        summary = run(job_config(short_world, storage, **SHORT, tracking={"mlflow": place}))
        assert summary["status"] == "already done"
        assert (summary["folders"], summary["scores"]) == (short_run["folders"], short_run["scores"])
        assert (storage / PAGE).stat().st_mtime_ns == page
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    accuracy = short_run["scores"]["upl*"]["predictions"]["scored"]["accuracy"]["ensemble"]
    assert logged.data.metrics["predictions/scored/accuracy/ensemble"] == accuracy


def test_a_tracker_that_cannot_work_is_an_error_before_anything_is_written(short_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.mlflow is 'ftp://host'"):
        run(job_config(short_world, tmp_path / "run", **SHORT, tracking={"mlflow": "ftp://host"}))
    assert not (tmp_path / "run").exists()
