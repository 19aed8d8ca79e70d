"""Runs of a study: their identity, the memory that they ask for, and that they run whatever that is."""

from __future__ import annotations

import itertools
import math
import time
from functools import partial
from pathlib import Path

import pytest
import ray
import torch

from upl_ray.cluster.placement import Node
from upl_ray.config.settings import Compute, Train
from upl_ray.pipeline.features import feature_table
from upl_ray.pipeline.selection import write_selection
from upl_ray.pipeline.text import write_text_features
from upl_ray.storage.schema import SELECTION
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.studies.methods.tip_adapter import search_of
from upl_ray.studies.runs import (
    FEW_SHOT_VERSIONS,
    FewShotSteps,
    ImagesToClassify,
    Run,
    few_shot_run,
    memory_to_ask,
    read_few_shot,
    run_all,
)

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


def test_a_fit_is_known_by_its_samples_and_its_method_s_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    images = ImagesToClassify(Step(store, "features", "0"), {"scored": ()}, 4)

    def folders(gathered: str = "a", shots: str = "0", dataset: str = "", seed: int = 0) -> dict[str, str]:
        digests = {"shots": shots, "views": "0", "validation": "0", "gathered": gathered, "text": "0"}
        steps = FewShotSteps(**{name: Step(store, name, digest) for name, digest in digests.items()})
        runs = {m: few_shot_run(m, steps, images, Train(seed=seed), search_of(dataset)) for m in FEW_SHOT_VERSIONS}
        return {m: run.steps[0].folder for m, run in runs.items()}

    def changed(**changes: str | int) -> set[str]:
        after = folders(**changes)  # type: ignore[arg-type]
        return {m for m in FEW_SHOT_VERSIONS if after[m] != before[m]}

    before = folders()
    assert len(set(before.values())) == 4
    assert changed(gathered="b") == set()  # it is a copy
    assert changed(shots="1") == set(FEW_SHOT_VERSIONS)
    assert changed(dataset="dtd") == {"tip-adapter", "tip-adapter-f"}
    assert changed(seed=1) == {"clip-adapter", "tip-adapter-f"}  # nothing is random in the others
    monkeypatch.setitem(FEW_SHOT_VERSIONS, "tip-adapter", FEW_SHOT_VERSIONS["tip-adapter"] + 1)
    assert changed() == {"tip-adapter"}


def test_a_method_asks_only_for_the_views_that_it_reads(tmp_path: Path) -> None:
    """ImageNet at 16 shots, 50 views and 1,024 features: 1.6 GB of views, of which a linear probe needs none."""
    store, counts = Store(str(tmp_path)), {"shots": 16_000, "validation": 4000, "gathered": 60_000, "text": 1}
    steps = {name: Step(store, name, "0") for name in (*counts, "views")}
    for name, images in counts.items():
        steps[name].finish(images=images)
    steps["views"].finish(images=16_000, views=50)
    to_classify = ImagesToClassify(Step(store, "features", "0"), {}, 1024)
    asked = {
        m: few_shot_run(m, FewShotSteps(**steps), to_classify, Train(), search_of("")).memory() / 1e9
        for m in FEW_SHOT_VERSIONS
    }
    of_views, features, affinities = 16e3 * 50 * 1024 * 2 / 1e9, 60e3 * 1024 * 2 * 2 / 1e9, 16e3 * 4e3 * 8 / 1e9
    assert asked["linear-probe"] == pytest.approx(features)
    assert asked["tip-adapter"] == pytest.approx(of_views / 5 + features + affinities)
    assert asked["clip-adapter"] == pytest.approx(of_views + features)
    assert asked["tip-adapter-f"] == pytest.approx(of_views + features + affinities)


def test_a_linear_probe_does_not_read_views(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    columns = {"image_id": ["a", "b"], "pseudo_label": [1, 0], "confidence": [1.0] * 2, "rank": [0] * 2}
    shots, text = Step(store, "selection", "0"), Step(store, "text", "0")
    write_selection(shots, SELECTION.empty_table().from_pydict({**columns, "shard": ["s", "s"]}, SELECTION), 2)
    write_text_features(text, torch.eye(2, 4), 10.0, "any")
    gathered = Step(store, "gathered", "0")
    table = feature_table(["a", "b"], torch.eye(2, 4).half().numpy(), set())
    gathered.finish(files=gathered.write_file("features.parquet", table.append_column("shard", [["s", "s"]])))
    no_views = Step(store, "views", "never-made")
    data = read_few_shot(FewShotSteps(shots, no_views, shots, gathered, text), most_views=0)
    assert data.views.shape == (2, 0, 4)
    assert data.labels.tolist() == [1, 0]
    assert torch.equal(data.features, torch.eye(2, 4))


@pytest.mark.slow
def test_runs_that_do_not_fit_together_take_turns_and_one_that_fits_nowhere_runs_alone(
    cluster: None, tmp_path: Path
) -> None:
    store, whole = Store(str(tmp_path)), int(ray.cluster_resources()["memory"])

    def body(step: Step) -> None:
        start = time.time()
        time.sleep(0.3)
        step.finish(start=start, end=time.time())

    steps = [Step(store, "method", str(i)) for i in range(4)]
    needs = [10 * whole, whole // 2, whole // 2, whole // 2]
    run_all(
        "test",
        [Run((s,), partial(body, s), memory=partial(int, n)) for s, n in zip(steps, needs, strict=True)],
        Compute(),
    )
    spans = sorted((m["start"], m["end"]) for m in (s.manifest() for s in steps))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
