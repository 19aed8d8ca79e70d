"""The job on several nodes that share nothing but object storage, and when one or all of them are lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import contents, write_tar
from node_process import Nodes
from s3_server import S3Server
from worlds import SHORT, committed_rows, contexts, job_config

from upl_ray.pipeline.main import run

SPREAD = SHORT["compute"] | {"max_actors": 2}


@pytest.fixture(scope="module")
def shared_nodes(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    cluster = Nodes(tmp_path_factory.mktemp("nodes"), s3.environment())
    yield cluster
    cluster.stop()


@pytest.fixture
def nodes(shared_nodes: Nodes) -> Nodes:
    """Two new worker nodes beside the head of all tests."""
    assert shared_nodes.ask("restore") == "restored"
    return shared_nodes


def section(short_bucket: str, storage: str, compute: dict[str, Any] = SPREAD, **others: Any) -> dict[str, Any]:
    sources = {n: {"uri": f"s3://{short_bucket}/{n}", "labels": "folders"} for n in ("corpus", "scored")}
    config = job_config(Path(), f"s3://{short_bucket}/{storage}", **{**SHORT, **sources, **others, "compute": compute})
    dumped: dict[str, Any] = config.model_dump(mode="json")
    return dumped


def finish(job: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    out, _ = job.communicate(timeout=500)
    assert job.returncode == 0, (folder / "log").read_text()
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def wait_until(job: subprocess.Popen[str], folder: Path, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert job.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)


def same_results(summary: dict[str, Any], short_run: dict[str, Any]) -> None:
    assert (summary["images"], summary["rejected"]) == (short_run["images"], short_run["rejected"])
    assert np.array_equal(contexts(summary["classifier"]), contexts(short_run["classifier"]))
    ours, theirs = (committed_rows(r["storage"], r["predictions"].rpartition("/")[2]) for r in (summary, short_run))
    assert ours.equals(theirs)


@pytest.mark.slow
def test_work_spreads_over_the_nodes_and_gives_the_same_results(
    nodes: Nodes, short_run: dict[str, Any], short_bucket: str, tmp_path: Path
) -> None:
    summary = finish(nodes.start("upl", section(short_bucket, "spread"), tmp_path), tmp_path)
    same_results(summary, short_run)
    log = (tmp_path / "log").read_text()
    assert "4 CPUs, 0 GPUs, 3 node(s)" in log
    assert "2 node(s) are fit for work" in log
    ran = nodes.ask("where")
    for kind in ("Encoder", "decode", "process", "RayTrainWorker"):
        on = {node for name, places in ran.items() if kind.lower() in name.lower() for node in places}
        assert len(on) == 2, (kind, sorted(ran))
    runs = nodes.ask("trains")[-2:]
    assert {r["name"]: r["status"] for r in runs} == {f"upl-star-members-{m}": "FINISHED" for m in (0, 1)}


@pytest.mark.slow
def test_archives_are_indexed_on_the_nodes_and_a_bad_one_is_refused(
    nodes: Nodes, short_bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    two_images = {"x.jpg": b"", "x.png": b""}
    for i in range(8):
        write_tar(tmp_path / "in" / f"{i}.tar", contents(6, i) | (two_images if i == 5 else {}))
    s3.upload(tmp_path / "in", short_bucket, "archives")
    config = section(short_bucket, "archives-run")
    config["corpus"] = {"uri": f"s3://{short_bucket}/archives"}
    job = nodes.start("upl", config, tmp_path)
    out, _ = job.communicate(timeout=200)
    assert job.returncode == 2, (tmp_path / "log").read_text()
    error = json.loads(out.splitlines()[-1])["error"]
    assert error.startswith("corpus: ")
    assert "5.tar' holds 2 images of one key" in error
    assert "2 node(s) are fit for work" in (tmp_path / "log").read_text()
    assert [places for name, places in nodes.ask("where").items() if "process_item" in name]
    committed = [k for k in s3.objects(short_bucket) if k.startswith("archives-run/archives-") and "/commits/" in k]
    assert 0 < len(committed) <= 7


@pytest.mark.faults
def test_a_node_killed_in_embedding_loses_nothing(
    nodes: Nodes, short_run: dict[str, Any], short_bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    job = nodes.start("upl", section(short_bucket, "lossy"), tmp_path)
    wait_until(job, tmp_path, lambda: any(k.startswith("lossy") and "/commits/" in k for k in s3.objects(short_bucket)))
    assert nodes.ask("lose") == "lost"
    same_results(finish(job, tmp_path), short_run)


@pytest.mark.slow
def test_ray_train_replaces_a_worker_and_a_node_that_are_killed_in_training(
    nodes: Nodes, cluster: None, short_world: Path, short_bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    longer = {"train": SHORT["train"] | {"epochs": 200}}
    undisturbed = run(job_config(short_world, tmp_path / "undisturbed", **{**SHORT, **longer}))
    job = nodes.start("upl", section(short_bucket, "killed", **longer), tmp_path)

    def checkpoints() -> set[str]:
        names = [k for k in s3.objects(short_bucket) if k.startswith("killed/members")]
        return {k.rpartition("/")[2] for k in names if "/checkpoints/" in k}

    wait_until(job, tmp_path, lambda: len(checkpoints()) == 2)
    first, second = (one["attempts"][-1]["workers"][0] for one in nodes.ask("trains")[-2:])
    os.kill(first["pid"], signal.SIGKILL)
    nodes.ask(f"lose {second['node_id']}")
    same_results(finish(job, tmp_path), undisturbed)
    for one in nodes.ask("trains")[-2:]:
        assert (one["status"], one["attempts"][-1]["status"]) == ("FINISHED", "FINISHED")
        assert one["attempts"][0]["status"] == "ERRORED", one
    assert (tmp_path / "log").read_text().count(" failed: ") == 2


@pytest.mark.slow
def test_a_job_that_is_stopped_while_ray_train_trains_ends_with_a_word(
    nodes: Nodes, short_bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    job = nodes.start("upl", section(short_bucket, "stopped", train=SHORT["train"] | {"epochs": 2000}), tmp_path)
    wait_until(job, tmp_path, lambda: any("stopped/members" in k for k in s3.objects(short_bucket)))
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 143, (tmp_path / "log").read_text()
    assert json.loads(out.splitlines()[-1])["status"] == "stopped"
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_gpus_that_are_only_declared_train_on_cpus_through_ray_train(
    nodes: Nodes, short_run: dict[str, Any], short_bucket: str, tmp_path: Path
) -> None:
    nodes.ask("restore 1")
    compute = SPREAD | {"device": "cpu"}
    same_results(finish(nodes.start("upl", section(short_bucket, "declared", compute), tmp_path), tmp_path), short_run)
    assert nodes.ask("trains")[-1]["run_settings"]["scaling_config"]["use_gpu"]


@pytest.mark.faults
def test_a_job_whose_gpus_are_all_gone_gives_up_though_cpus_are_left(
    nodes: Nodes, short_bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    nodes.ask("restore 1")
    compute = SPREAD | {"wait_for_resources_s": 45, "device": "cpu"}
    job = nodes.start("upl", section(short_bucket, "no-gpus", compute=compute), tmp_path)
    wait_until(job, tmp_path, lambda: any(k.startswith("no-gpus/features") for k in s3.objects(short_bucket)))
    assert "of 1 GPU (cpu)" in (tmp_path / "log").read_text()
    nodes.ask("lose")
    out, _ = job.communicate(timeout=250)
    assert job.returncode == 1
    last = json.loads(out.splitlines()[-1])["error"]
    assert last.startswith("All nodes for vit_a "), last
    assert "have been gone for compute.wait_for_resources_s = 45 s" in last


@pytest.mark.faults
def test_a_job_whose_nodes_are_all_gone_gives_up_in_one_sentence(
    nodes: Nodes, short_bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    job = nodes.start("upl", section(short_bucket, "gone", compute=SPREAD | {"wait_for_resources_s": 30}), tmp_path)
    wait_until(job, tmp_path, lambda: any(k.startswith("gone/features") for k in s3.objects(short_bucket)))
    nodes.ask("lose")
    nodes.ask("lose")
    out, _ = job.communicate(timeout=100)
    assert job.returncode == 1
    assert "All nodes for work have been gone for compute.wait_for_resources_s = 30 s" in out.splitlines()[-1]
    early = nodes.start("upl", section(short_bucket, "none", compute=SPREAD | {"wait_for_resources_s": 5}), tmp_path)
    out, _ = early.communicate(timeout=100)
    assert early.returncode == 1
    assert "No node with a CPU for work came up within compute.wait_for_resources_s = 5 s" in out.splitlines()[-1]
