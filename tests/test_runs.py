"""Runs of a study: what memory they ask for, and that they run whatever that is."""

from __future__ import annotations

import itertools
import json
import math
import time
from functools import partial
from pathlib import Path

import pytest
import ray
import torch

from upl_ray.artifacts import Artifact, Store
from upl_ray.config import Compute, Train
from upl_ray.features import feature_table
from upl_ray.few_shot_runs import Samples, few_shot_run, read_few_shot
from upl_ray.methods.tip_adapter import search_of
from upl_ray.passes import Node
from upl_ray.runs import Images, Run, memory_to_ask, run_all
from upl_ray.samples import write_selection
from upl_ray.schema import SELECTION
from upl_ray.text_features import write_text_features

GIB = 2**30


def test_a_task_asks_for_what_it_needs_and_at_most_for_what_the_largest_node_has() -> None:
    nodes = [Node(4, memory=4 * GIB), Node(16, memory=64 * GIB), Node(0, memory=1000 * GIB)]
    assert memory_to_ask(3.5 * GIB, 0, nodes) == 3.5 * GIB
    assert memory_to_ask(30 * GIB, 0, nodes) == 30 * GIB
    assert memory_to_ask(100 * GIB, 0, nodes) == 64 * GIB  # nothing runs on a node without CPUs
    with_gpu = Node(8, gpus=1, memory=16 * GIB)
    assert memory_to_ask(100 * GIB, 0.5, [*nodes, with_gpu]) == 16 * GIB
    assert memory_to_ask(100 * GIB, 1, nodes) is None  # a node with a GPU may come
    assert memory_to_ask(1.0, 0, [Node(4, memory=math.inf)]) is None


def finished(store: Store, step: str, **facts: int) -> Artifact:
    artifact = Artifact(store, step, "0")
    artifact.finish(**facts)
    return artifact


def test_a_method_asks_only_for_the_views_that_it_reads(tmp_path: Path) -> None:
    """ImageNet at 16 shots, 50 views and 1,024 features: 1.6 GB of views, of which a linear probe needs none."""
    store = Store(str(tmp_path))
    shots, views = finished(store, "selection", images=16_000), finished(store, "views", images=16_000, views=50)
    validation, gathered = finished(store, "validation", images=4000), finished(store, "gathered", images=60_000)
    samples = Samples(shots, views, validation, gathered, Artifact(store, "text", "0"))
    images = Images(Artifact(store, "features", "0"), {}, 1024)
    asked = {}
    for name in ("linear-probe", "tip-adapter", "clip-adapter", "tip-adapter-f"):
        asked[name] = few_shot_run(name, samples, images, 0, Train(), search_of("")).memory() / 1e9
    of_views, features, affinities = 16e3 * 50 * 1024 * 2 / 1e9, 60e3 * 1024 * 2 * 2 / 1e9, 16e3 * 4e3 * 8 / 1e9
    assert asked["linear-probe"] == pytest.approx(features)
    assert asked["tip-adapter"] == pytest.approx(of_views / 5 + features + affinities)
    assert asked["clip-adapter"] == pytest.approx(of_views + features)
    assert asked["tip-adapter-f"] == pytest.approx(of_views + features + affinities)


def test_a_linear_probe_does_not_read_views(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    columns = {"image_id": ["a", "b"], "pseudo_label": [1, 0], "confidence": [1.0] * 2, "rank": [0] * 2}
    shots, text = Artifact(store, "selection", "0"), Artifact(store, "text", "0")
    write_selection(shots, SELECTION.empty_table().from_pydict({**columns, "shard": ["s", "s"]}, SELECTION), 2)
    write_text_features(text, torch.eye(2, 4), 10.0)
    gathered = Artifact(store, "gathered", "0")
    table = feature_table(["a", "b"], torch.eye(2, 4).half().numpy(), set())
    table = table.append_column("shard", [["s", "s"]])
    gathered.finish(files=gathered.write_file("features.parquet", table))
    no_views = Artifact(store, "views", "never-made")
    data = read_few_shot(Samples(shots, no_views, shots, gathered, text), most_views=0)
    assert data.views.shape == (2, 0, 4)
    assert data.labels.tolist() == [1, 0]
    assert torch.equal(data.features, torch.eye(2, 4))


@pytest.mark.slow
def test_runs_that_do_not_fit_together_take_turns_and_one_that_fits_nowhere_runs_alone(
    cluster: None, tmp_path: Path
) -> None:
    store, whole = Store(str(tmp_path)), int(ray.cluster_resources()["memory"])

    def body(artifact: Artifact) -> None:
        start = time.time()
        time.sleep(0.3)
        artifact.finish(start=start, end=time.time())

    artifacts = [Artifact(store, "method", str(i)) for i in range(4)]
    needs = [10 * whole, whole // 2, whole // 2, whole // 2]
    runs = [Run((a,), partial(body, a), memory=partial(int, n)) for a, n in zip(artifacts, needs, strict=True)]
    run_all("test", runs, Compute())
    spans = sorted((m["start"], m["end"]) for m in (json.loads(store.read(a.name("manifest.json"))) for a in artifacts))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
