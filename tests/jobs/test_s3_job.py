"""The whole job with corpus and storage in object storage, on a real S3 server, against the same job on local files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from s3_server import Request, S3Server, count
from worlds import SHORT, committed_rows, contexts, job_config

from upl_ray.config.settings import Config
from upl_ray.pipeline.main import run
from upl_ray.report.cards import LOOKS
from upl_ray.storage.store import Store
from upl_ray.upl.classifier import load_classifier

ROOT = Path(__file__).parents[2]
RESULTS = 7  # steps with results, of which nothing may be gone
SHARDS = 11  # 83 images of the corpus and 20 scored ones, ten a shard


@dataclass(frozen=True)
class Bucket:
    """A bucket that holds a digit world, and what is done with it."""

    server: S3Server
    name: str

    def config(self, storage: str = "run", **sections: Any) -> Config:
        """The short job over this bucket's images into one of its prefixes."""
        sources = {n: {"uri": f"s3://{self.name}/digits/{n}", "labels": "folders"} for n in ("corpus", "scored")}
        return job_config(Path(), f"s3://{self.name}/{storage}", **{**SHORT, **sources, **sections})

    def requests(self, first: int = 0) -> list[Request]:
        """What was asked of the bucket."""
        return self.server.requests(self.name, first)

    def written(self, storage: str, folder: str) -> list[str]:
        """Keys that were written into folders of this name, once for each time."""
        keys = [r.key for r in self.requests() if r.kind == "PUT"]
        return [k for k in keys if k.startswith(f"{storage}/") and f"/{folder}" in k]


@pytest.fixture(scope="module")
def bucket(s3: S3Server, short_world: Path) -> Bucket:
    name = s3.create_bucket()
    for part in ("corpus", "scored"):
        s3.upload(short_world / part, name, f"digits/{part}")
    return Bucket(s3, name)


@pytest.fixture(scope="module")
def finished(cluster: None, bucket: Bucket) -> dict[str, Any]:
    before = len(bucket.requests())
    return {**run(bucket.config()), "requests": bucket.requests(before)}


def start(config: Config, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """The job in a process group of its own; its log lies in the folder."""
    (folder / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "jobs/upl.py", str(folder / "job.yaml")]
    inherited = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited | environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def test_contexts_labels_and_predictions_equal_those_of_local_files(
    short_run: dict[str, Any], finished: dict[str, Any], bucket: Bucket
) -> None:
    assert finished["status"] == "done"
    assert np.array_equal(contexts(finished["classifier"]), contexts(short_run["classifier"]))
    pairs = {
        p.name: p.name for step in ("features", "pseudo_labels") for p in Path(short_run["storage"]).glob(f"{step}-*")
    }
    pairs[Path(short_run["predictions"]).name] = Path(finished["predictions"]).name  # their names tell the corpus, too
    assert len(pairs) == 3
    for ours, theirs in pairs.items():
        assert committed_rows(finished["storage"], theirs).equals(committed_rows(short_run["storage"], ours))
    same = ("images", "rejected", "starved_classes", "scores")
    assert {k: finished[k] for k in same} == {k: short_run[k] for k in same}


def test_there_are_no_renames_no_deletions_and_no_directory_markers(finished: dict[str, Any], bucket: Bucket) -> None:
    asked = finished["requests"]
    assert {r.kind for r in asked} == {"GET", "HEAD", "PUT", "LIST"}
    keys = {*bucket.server.objects(bucket.name), *(r.key for r in asked if r.kind == "PUT")}
    assert not [k for k in keys if k.endswith("/")]
    assert not [r for r in asked if r.status >= 400 and r.status != 404]


def test_a_run_with_nothing_new_needs_no_ray_and_few_requests(
    finished: dict[str, Any], bucket: Bucket, tmp_path: Path
) -> None:
    before = len(bucket.requests())
    job = start(bucket.config(), tmp_path, RAY_ADDRESS="127.0.0.1:9")  # joining a cluster would fail
    out, _ = job.communicate(timeout=200)
    assert job.returncode == 0, (tmp_path / "log").read_text()
    assert json.loads(out.splitlines()[-1])["status"] == "already done"
    asked = bucket.requests(before)
    assert not [r for r in asked if r.kind in ("GET", "HEAD") and r.key.startswith("digits")]
    asked_for = count(asked)
    assert asked_for["LIST"] <= 12 + RESULTS
    assert asked_for["PUT"] <= 4  # config.json, run.json
    # Manifests; of each shard images, labels, rejections and predictions.
    assert asked_for["GET"] <= 20 + RESULTS + 4 * SHARDS


def test_the_classifier_loads_from_its_address(
    short_run: dict[str, Any], finished: dict[str, Any], short_world: Path
) -> None:
    images = [Image.open(p) for p in sorted((short_world / "scored").rglob("*.png"))]
    assert load_classifier(finished["classifier"]).predict(images) == load_classifier(short_run["classifier"]).predict(
        images
    )


@pytest.mark.faults
def test_listings_do_not_grow_with_the_number_of_shards(finished: dict[str, Any], bucket: Bucket) -> None:
    before = len(bucket.requests())
    run(bucket.config("large-shards", compute={**SHORT["compute"], "shard_size": 40}))
    few, many = bucket.requests(before), finished["requests"]
    written = [count(asked)["PUT"] for asked in (few, many)]
    assert written[0] < written[1] - 3 * (SHARDS - 4)  # features, labels, predictions; also their listings
    steps = [
        Counter(r.key.partition("/")[2].partition("-")[0] for r in asked if r.kind == "LIST") for asked in (few, many)
    ]
    for found in steps:  # each process that predicts lists it, and Ray decides how many do
        assert found.pop("classifier") <= 8
    assert steps[0] == steps[1]
    assert steps[0].total() <= 18 + RESULTS


def archives_of(world: Path, form: str, folder: Path) -> Path:
    """The corpus of a world in four archives."""
    folder.mkdir()
    files = sorted((world / "corpus").rglob("*.png"))
    for i in range(4):
        part, place = files[i::4], folder / f"{i}.{form}"
        if form == "tar":
            with tarfile.open(place, "w") as tar:
                for path in part:
                    tar.add(path, str(path.relative_to(world / "corpus")))
        else:
            columns = {"image": [p.read_bytes() for p in part], "label": [p.parent.name for p in part]}
            pq.write_table(pa.table(columns), place, row_group_size=10)
    return folder


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(f, marks=pytest.mark.slow if f == "tar" else pytest.mark.faults)
        for f in ("tar", "parquet", "files")
    ],
)
def test_a_killed_job_ends_with_the_same_contexts_and_does_nothing_twice(
    cluster: None, bucket: Bucket, short_world: Path, tmp_path: Path, form: str
) -> None:
    """Killed after its first commit of archives and of features, and after the first checkpoint."""
    sections: dict[str, Any] = {
        "train": SHORT["train"] | {"epochs": 6},
        "compute": SHORT["compute"] | {"trials": 1},
    }
    if form != "files":
        bucket.server.upload(archives_of(short_world, form, tmp_path / form), bucket.name, form)
        labels = "folders" if form == "tar" else "column"
        sections["corpus"] = {"uri": f"s3://{bucket.name}/{form}", "labels": labels}
    killed, undisturbed = f"killed-{form}", run(bucket.config(f"undisturbed-{form}", **sections))
    config, left = bucket.config(killed, **sections), {}
    for step, folder in (("archives", "commits"), ("features", "commits"), ("members", "checkpoints")):
        if step == "archives" and form == "files":
            continue
        job = start(config, tmp_path)
        deadline = time.monotonic() + 300
        while not [k for k in bucket.written(killed, step) if f"/{folder}/" in k]:
            assert job.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        left[step] = {k for k in bucket.server.objects(bucket.name) if k.startswith(f"{killed}/")}
    assert 0 < sum("/features-" in k and "/commits/" in k for k in left["features"]) < SHARDS
    assert any("/checkpoints/" in k for k in left["members"])
    assert not any("/classifier-" in k for k in left["members"])
    resumed = run(config)
    assert resumed["status"] == "done"
    assert np.array_equal(contexts(resumed["classifier"]), contexts(undisturbed["classifier"]))
    for folder in ("commits", "prompts"):
        assert set(Counter(bucket.written(killed, folder)).values()) == {1}
    states = [*left.values(), set(bucket.server.objects(bucket.name))]
    assert all(before < after for before, after in pairwise(states))


@pytest.mark.slow
def test_new_changed_and_removed_images_cost_only_themselves(
    finished: dict[str, Any], bucket: Bucket, short_world: Path
) -> None:
    """The last test: the images of the others are changed."""
    before, committed = len(bucket.requests()), set(bucket.written("run", "commits"))
    client, prefix = bucket.server.client(), "digits/corpus/"
    extra = sorted((short_world / "all" / "corpus" / "nine").iterdir())[-3:]
    gone, changed = sorted(k for k in bucket.server.objects(bucket.name) if k.startswith(f"{prefix}five/"))[:2]
    new = {f"{prefix}nine/{extra[0].name}", f"{prefix}nine/ü b#.png", changed}
    for key, path in zip(sorted(new), extra, strict=True):
        client.put_object(Bucket=bucket.name, Key=key, Body=path.read_bytes())
    client.delete_object(Bucket=bucket.name, Key=gone)
    grown = run(bucket.config())
    store = Store(f"s3://{bucket.name}")
    commits = [k for k in bucket.written("run", "commits") if k not in committed and "/features-" in k]
    assert sum(store.read_json(k)["rows"] for k in commits) == 3
    read = {r.key for r in bucket.requests(before) if r.kind == "GET" and r.key.startswith(prefix)}
    tables = [store.read_table(k) for k in bucket.written("run", "selection-") if k.endswith("/selection.parquet")]
    seen = {prefix + i for table in tables for i in table["image_id"].to_pylist()}
    moved = [json.loads(store.read(k)) for k in bucket.written("run", "changed-") if k.endswith(".json")]
    scores = [store.read_json(k) for k in bucket.written("run", "scores-") if k.endswith("/manifest.json")]
    looks = [found["parts"]["corpus"][name] for found in scores for name in LOOKS]
    seen |= {prefix + row["image_id"] for rows in (*moved, *looks) for row in rows}
    assert new <= read <= new | seen, "only new images are read, and those that the report shows"
    predictions = Store(grown["predictions"])
    parts = [predictions.read_table(p) for p in predictions.read_json("manifest.json")["parts"]]
    ids = {prefix + i for part in parts for i in part["image_id"].to_pylist()}
    readable = {k for k, size in bucket.server.objects(bucket.name).items() if k.startswith(prefix) and size}
    assert ids == readable - {f"{prefix}two/text.png", f"{prefix}six/cut.png"}
