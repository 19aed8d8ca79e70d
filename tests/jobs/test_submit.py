"""Jobs submitted to a head node as a scheduler does it: `ray job submit`, token authentication, all data in S3."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import yaml
from head_node import ROOT, HeadNode, last_line
from s3_server import S3Server
from worlds import SHORT, committed_rows, contexts, job_config

pytestmark = pytest.mark.slow  # whole runs, of minutes


@pytest.fixture(scope="module")
def head(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadNode]:
    node = HeadNode(tmp_path_factory.mktemp("head"), 2, **s3.environment())
    yield node
    node.stop()


def write_config(folder: Path, short_bucket: str, storage: str) -> str:
    """The short job over the bucket's digits into one of its prefixes."""
    sources = {n: {"uri": f"s3://{short_bucket}/{n}", "labels": "folders"} for n in ("corpus", "scored")}
    config = job_config(folder, f"s3://{short_bucket}/{storage}", **{**SHORT, **sources})
    path = folder / f"{storage}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return str(path)


@pytest.fixture(scope="module")
def finished(head: HeadNode, short_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An undisturbed run: its summary, its log, and what Prometheus saw of it."""
    config = write_config(tmp_path_factory.mktemp("job"), short_bucket, "run")
    assert head.submit("jobs/upl.py", config, job_id="run", wait=False).returncode == 0
    seen = ""

    def ended() -> bool:
        nonlocal seen
        seen += head.metrics()
        time.sleep(1)
        return head.status("run") not in ("PENDING", "RUNNING")

    head.wait_until("run", ended)
    log = head.ray("job", "logs", "run").stdout
    assert head.status("run") == "SUCCEEDED", log
    return {**last_line(log), "log": log, "metrics": seen}


def test_a_submitted_job_ends_as_one_that_was_started_here(finished: dict[str, Any], short_run: dict[str, Any]) -> None:
    assert finished["status"] == "done"
    assert (finished["images"], finished["rejected"]) == (83, 3)
    assert "1 node(s) are fit for work" in finished["log"]
    assert np.array_equal(contexts(finished["classifier"]), contexts(short_run["classifier"]))


def test_prometheus_sees_images_rejections_epochs_and_losses(finished: dict[str, Any]) -> None:
    lines = finished["metrics"].splitlines()

    def most(name: str, tag: str = "") -> float:
        return max(float(x.rpartition(" ")[2]) for x in lines if x.startswith(f"ray_{name}{{") and tag in x)

    assert most("upl_images_encoded_total", 'backbone="vit_a"') >= 83
    assert most("upl_images_per_second", 'backbone="vit_a"') > 0
    assert most("upl_images_rejected_total", 'reason="empty file"') == 1
    assert most("upl_member_epochs_total") == 20  # of each of two trials
    assert most("upl_loss", 'member="1"') > 0
    assert most("upl_loss", 'variant="upl*"') > 0


def test_the_same_submission_id_is_a_lock(head: HeadNode, finished: dict[str, Any]) -> None:
    again = head.submit("jobs/upl.py", "no-such.yaml", job_id="run")
    assert again.returncode == 1
    assert "already exists" in again.stdout + again.stderr


def test_bad_input_fails_the_job_with_its_sentence(head: HeadNode) -> None:
    job = head.submit("jobs/upl.py", "no-such.yaml", job_id="bad")
    assert job.returncode == 1
    assert head.status("bad") == "FAILED"
    assert "error: The configuration file 'no-such.yaml' does not exist" in job.stdout
    assert last_line(job.stdout)["status"] == "failed"
    assert head.submit("jobs/upl.py", "no-such.yaml", job_id="bad").returncode == 1  # the id of a failed job, too


@pytest.mark.parametrize(("headers", "status"), [({}, 401), ({"Authorization": "Bearer " + "0" * 64}, 403)])
def test_nobody_without_the_token_gets_in(head: HeadNode, headers: dict[str, str], status: int) -> None:
    assert json.loads(head.get("/api/jobs/"))
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers=headers)
    with pytest.raises(urllib.error.HTTPError, match=str(status)):
        urllib.request.urlopen(request, timeout=10)


@pytest.mark.slow
def test_a_driver_without_the_token_ends_with_a_sentence(head: HeadNode, short_bucket: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, short_bucket, "no-token")
    environment = {k: v for k, v in head.environment.items() if not k.startswith("RAY_AUTH")}
    environment |= {"RAY_ADDRESS": head.gcs, "HOME": str(tmp_path)}
    command = [sys.executable, "jobs/upl.py", config]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    error = last_line(done.stdout)["error"]
    assert f"The Ray cluster of RAY_ADDRESS = '{head.gcs}' cannot be joined: " in error
    assert "RAY_AUTH_TOKEN_PATH" in error


@pytest.mark.faults
def test_the_nightly_job_labels_with_the_newest_classifier(
    head: HeadNode, short_bucket: str, finished: dict[str, Any]
) -> None:
    chunks = ["--compute.shard-size", "10", "--compute.chunk-size", "2", "--compute.max-actors", "1"]  # bitwise equal
    options = ["--storage-path", f"s3://{short_bucket}/nightly", "--max-rejected", "0.1", *chunks]
    job = head.submit(
        "jobs/predict.py", f"s3://{short_bucket}/run", f"s3://{short_bucket}/corpus", *options, job_id="night"
    )
    assert job.returncode == 0, job.stdout + job.stderr
    summary = last_line(job.stdout)
    assert (summary["images"], summary["rejected"], summary["drift"]) == (83, 3, None)
    ours = committed_rows(summary["storage"], summary["predictions"].rpartition("/")[2])
    theirs = committed_rows(finished["storage"], finished["predictions"].rpartition("/")[2])  # the scored ones, too
    assert ours.num_rows == 80
    assert ours.equals(theirs.filter(pc.is_in(theirs["image_id"], ours["image_id"].combine_chunks())))


@pytest.mark.slow
def test_a_job_stopped_in_embedding_and_in_training_ends_as_if_undisturbed(
    head: HeadNode, short_bucket: str, s3: S3Server, finished: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path, short_bucket, "stopped")
    for folder in ("/commits/", "/checkpoints/"):
        job_id = f"stopped{folder.strip('/')}"
        assert head.submit("jobs/upl.py", config, job_id=job_id, wait=False).returncode == 0
        head.wait_until(job_id, lambda: any(k.startswith("stopped/") and folder in k for k in s3.objects(short_bucket)))  # noqa: B023
        head.stop_job(job_id)
    assert not any("/classifier-" in k for k in s3.objects(short_bucket) if k.startswith("stopped/"))
    job = head.submit("jobs/upl.py", config, job_id="resumed")
    assert job.returncode == 0, job.stdout
    same_results(s3, short_bucket, last_line(job.stdout), finished)


@pytest.mark.faults
def test_two_runs_at_once_into_one_storage_do_no_harm(
    head: HeadNode, short_bucket: str, s3: S3Server, finished: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path, short_bucket, "shared")
    ids = ("left", "right")
    for job_id in ids:
        assert head.submit("jobs/upl.py", config, job_id=job_id, wait=False).returncode == 0
    for job_id in ids:
        head.wait_until(job_id, lambda: head.status(job_id) not in ("PENDING", "RUNNING"))  # noqa: B023
    logs = [head.ray("job", "logs", job_id).stdout for job_id in ids]
    assert [head.status(job_id) for job_id in ids] == ["SUCCEEDED"] * 2, logs
    for log in logs:
        same_results(s3, short_bucket, last_line(log), finished)


def same_results(s3: S3Server, short_bucket: str, summary: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal contexts, pseudo-labels and predictions, each image once."""
    assert np.array_equal(contexts(summary["classifier"]), contexts(expected["classifier"]))
    for step in ("pseudo_labels-", "predictions-"):
        tables = []
        for storage in (summary["storage"], expected["storage"]):
            keys = [k.split("/") for k in s3.objects(short_bucket)]
            (folder,) = {k[1] for k in keys if k[0] == storage.rpartition("/")[2] and k[1].startswith(step)}
            tables.append(committed_rows(storage, folder))
        assert tables[0].num_rows == 100
        assert tables[0].equals(tables[1])
