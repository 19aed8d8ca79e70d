"""The job on several nodes that share nothing but object storage, and when one or all of them are lost."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from s3_server import S3Server
from worlds import committed_rows, contexts, digit_world, job_config

from upl_ray.pipeline import run

ROOT = Path(__file__).parent.parent
SHORT: dict[str, Any] = {
    "backbones": ["demo:vit_a"],
    "scored": {"uri": ""},
    "label": {"top_k": 4, "max_rejected": 0.1},
    "views": {"count": 2},
    "train": {"members": 4, "epochs": 6, "checkpoint_every": 1},
    "compute": {"shard_size": 10, "chunk_size": 2, "trials": 2, "max_actors": 2},
}


class Nodes:
    """A head and two worker nodes, each with two CPUs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        outside = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | environment
        self.environment = outside | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "nodes.py")],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.environment["RAY_ADDRESS"] = self.answer()

    def answer(self) -> Any:
        """The next line of JSON."""
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith(('"', "{")):
            assert line, "the cluster has ended"
        return json.loads(line)

    def ask(self, question: str) -> Any:
        """`lose` or `where`."""
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """End all nodes."""
        self.process.communicate(timeout=60)

    def start(self, job: str, config: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
        """A job as a process beside the cluster; its log lies in the folder."""
        (folder / "job.yaml").write_text(yaml.safe_dump(config))
        with (folder / "log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, f"jobs/{job}.py", str(folder / "job.yaml")],
                cwd=ROOT,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_world(tmp_path_factory.mktemp("digits"), 8, 2)


@pytest.fixture(scope="module")
def bucket(s3: S3Server, world: Path) -> str:
    name = s3.create_bucket()
    s3.upload(world / "corpus", name, "digits")
    return name


@pytest.fixture
def nodes(s3: S3Server, tmp_path: Path) -> Iterator[Nodes]:
    (tmp_path / "nodes").mkdir()
    cluster = Nodes(tmp_path / "nodes", s3.environment())
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def alone(cluster: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same job on one node and local files."""
    return run(job_config(world, tmp_path_factory.mktemp("alone"), **SHORT))


def section(bucket: str, storage: str, **sections: Any) -> dict[str, Any]:
    corpus = {"uri": f"s3://{bucket}/digits", "labels": "folders"}
    config = job_config(Path(), f"s3://{bucket}/{storage}", **{**SHORT, "corpus": corpus, **sections})
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


def same_results(summary: dict[str, Any], alone: dict[str, Any]) -> None:
    assert (summary["images"], summary["rejected"]) == (alone["images"], alone["rejected"])
    assert np.array_equal(contexts(summary["classifier"]), contexts(alone["classifier"]))
    ours, theirs = (committed_rows(r["storage"], r["predictions"].rpartition("/")[2]) for r in (summary, alone))
    assert ours.equals(theirs)


def test_work_spreads_over_the_nodes_and_gives_the_same_results(
    nodes: Nodes, alone: dict[str, Any], bucket: str, tmp_path: Path
) -> None:
    summary = finish(nodes.start("upl", section(bucket, "spread"), tmp_path), tmp_path)
    same_results(summary, alone)
    log = (tmp_path / "log").read_text()
    assert "4 CPUs, 0 GPUs, 3 node(s)" in log
    assert "2 node(s) are fit for work" in log
    ran = nodes.ask("where")
    for kind in ("Encoder", "decode", "process", "ImplicitFunc"):
        on = {node for name, places in ran.items() if kind.lower() in name.lower() for node in places}
        assert len(on) == 2, (kind, sorted(ran))


@pytest.mark.slow
def test_nodes_killed_in_embedding_and_in_training_lose_nothing(
    nodes: Nodes, alone: dict[str, Any], bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    job = nodes.start("upl", section(bucket, "lossy"), tmp_path)
    wait_until(job, tmp_path, lambda: any(k.startswith("lossy/features") for k in s3.objects(bucket)))
    assert nodes.ask("lose") == "lost"
    same_results(finish(job, tmp_path), alone)


@pytest.mark.slow
def test_a_job_whose_nodes_are_all_gone_gives_up_in_one_sentence(
    nodes: Nodes, bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    job = nodes.start(
        "upl", section(bucket, "gone", compute={**SHORT["compute"], "wait_for_resources_s": 10}), tmp_path
    )
    wait_until(job, tmp_path, lambda: any(k.startswith("gone/features") for k in s3.objects(bucket)))
    nodes.ask("lose")
    nodes.ask("lose")
    out, _ = job.communicate(timeout=200)
    assert job.returncode == 1
    assert "All nodes for work have been gone for compute.wait_for_resources_s = 10 s" in out.splitlines()[-1]
