"""Actors on real Ray clusters: GPUs that are only declared, too few of them, held by others, or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data
import torch
from models import resolve_folder, write_model
from PIL import Image

from upl_ray.cluster import watch
from upl_ray.cluster.actors import add_pool, configure_data, finish_tasks, in_one_sentence, needs_of
from upl_ray.cluster.placement import Node, Pool
from upl_ray.cluster.watch import cluster_nodes, lacking
from upl_ray.config.settings import Compute, PoolOptions
from upl_ray.errors import JobError
from upl_ray.upl.clip_model import ClipModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results of embedding with four backbones on four CPUs and one declared GPU, in two processes."""
    root, rng = tmp_path_factory.mktemp("fake_gpus"), np.random.default_rng(0)
    (root / "pictures").mkdir()
    for i in range(13):
        noise = rng.integers(0, 256, (*rng.integers(40, 120, 2), 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "pictures" / f"{i:02d}.png")
    for i, side in enumerate((64, 96, 64, 128)):
        write_model(root / f"m{i}", {"image_size": side, "patch_size": 32}, seed=i)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(ROOT / "tests" / "support" / "fake_gpus.py"), str(root)]
    running = [
        subprocess.Popen([*command, which], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for which in ("one_pass", "too_few")  # each mostly waits for actors to start, one after another
    ]
    found: dict[str, dict[str, Any]] = {}
    for process in running:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        found |= json.loads(out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_four_pools_on_four_cpus_and_one_gpu_finish_in_one_pass(scenarios: dict[str, dict[str, Any]]) -> None:
    made = scenarios["one pass"]
    assert made["error"] == ""
    assert set(made["digests"]) == {"m0", "m1", "m2", "m3"}
    line = "pass 1 of 1: m3 1 actor of 0.25 GPU (cpu); m1 1 actor of 0.25 GPU (cpu); m0 1 actor of 0.25 GPU (cpu)"
    assert line in made["log"][0]


@pytest.mark.slow
def test_pools_that_do_not_fit_at_once_take_passes_and_give_the_same_bits(scenarios: dict[str, dict[str, Any]]) -> None:
    made = scenarios["three passes"]
    assert made["error"] == ""
    assert made["digests"] == {name: scenarios["one pass"]["digests"][name] for name in ("m0", "m1", "m2")}
    assert [" ".join(line.split()[1:5]) for line in made["log"][:3]] == [f"pass {i} of 3:" for i in (1, 2, 3)]
    assert "m0 1 actor of 1 GPU (cpu, T4, zone in(a, b))" in " ".join(made["log"])
    assert "several passes, as not all of these actors are sure to fit at once: 1 GPU(s) of 15 GiB" in made["log"][3]


@pytest.mark.slow
def test_a_pool_that_no_node_serves_fails_at_once(scenarios: dict[str, dict[str, Any]]) -> None:
    assert "'m0' needs a node with a GPU, accelerator_type 'H100'" in scenarios["no such node"]["error"]


@pytest.mark.slow
def test_a_gpu_held_by_others_fails_in_time(scenarios: dict[str, dict[str, Any]]) -> None:
    assert "no room within compute.wait_for_resources_s = 3 s" in scenarios["held by others"]["error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_torch_does_not_see_is_reported_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"sees no CUDA device there; .* set compute\.device to cpu"):
        ClipModel(resolve_folder(write_model(tmp_path / "m")), device="cuda")


def test_the_error_of_an_actor_reaches_the_driver_as_one_sentence(cluster: None) -> None:
    class Refuses:
        def __init__(self) -> None:
            raise JobError("There is no GPU; do without.")

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return row

    compute = Compute(wait_for_resources_s=60)
    configure_data(compute)
    pool = Pool(0.0, 0.0, 2**20, 1, "cpu", PoolOptions())
    with pytest.raises(JobError, match=r"^There is no GPU; do without\.$"), in_one_sentence(compute):
        add_pool(ray.data.range(1), Refuses, (), pool, 1).take_all()


def test_decoding_is_not_fused_into_the_actors_of_the_first_pool(cluster: None) -> None:
    class Actor:
        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return {**row, "actor": os.getpid()}

    pool = Pool(1.0, 0.0, 2**20, 1, "cpu", PoolOptions())
    decoded = ray.data.range(4).map(lambda row: {"task": os.getpid()})
    assert all(row["task"] != row["actor"] for row in add_pool(decoded, Actor, (), pool, 4).take_all())


@pytest.mark.parametrize(("device", "calls"), [("cpu", 1), ("cuda", 2)])
def test_only_actors_on_gpus_are_called_by_two_threads(cluster: None, device: str, calls: int) -> None:
    class Meeting:
        def __init__(self) -> None:
            self.barrier, self.here = threading.Barrier(calls), 0

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            self.here += 1
            self.barrier.wait(timeout=60)  # breaks unless that many calls are here at once
            time.sleep(0.05)
            together = self.here
            self.barrier.wait(timeout=60)
            self.here -= 1
            return {"together": together}

    pool = Pool(1.0, 0.0, 2**20, 1, device, PoolOptions())
    rows = add_pool(ray.data.range(4, override_num_blocks=4), Meeting, (), pool, 4).take_all()
    assert [row["together"] for row in rows] == 4 * [calls]


def test_nodes_are_read_from_ray(cluster: None) -> None:
    (node,) = cluster_nodes()
    assert (node.cpus, node.gpus) == (4, ray.cluster_resources().get("GPU", 0))
    assert 0 < node.memory == ray.cluster_resources()["memory"]


def test_a_pool_runs_on_the_nodes_that_it_was_planned_for(small_clip: ClipModel) -> None:
    bound = PoolOptions(accelerator_type="T4", label_selector={"zone": "a"})
    on_gpus = needs_of([(small_clip.spec, Pool(0.0, 0.25, 0, 4, "cuda", bound))])
    there = Node(8.0, 1.0, accelerators=frozenset({"T4"}), labels={"zone": "a"})
    (words,) = on_gpus
    assert words == "for small up to 4 actors of 0.25 GPU (cuda, T4, zone a)"
    assert lacking(on_gpus, [Node(8.0), there]) == ""
    others = [Node(8.0), Node(8.0, 1.0), Node(8.0, accelerators=frozenset({"T4"}), labels={"zone": "a"})]
    assert lacking(on_gpus, others) == words
    on_cpus = needs_of([(small_clip.spec, Pool(0.0, 0.0, 2**20, 1, "cpu", PoolOptions()))])
    assert lacking(on_cpus, [Node(0.0, 1.0)]) == "for small 1 actor of 0 CPU and 0.0 GiB (cpu)"
    assert lacking(on_cpus, [Node(0.0), Node(1.0)]) == ""


def test_tasks_whose_nodes_are_gone_are_not_waited_for(
    cluster: None, small_clip: ClipModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "WATCH_S", 0.2)
    pool = Pool(0.0, 1.0, 0, 1, "cpu", PoolOptions(accelerator_type="H100"))
    task = ray.remote(num_gpus=1, accelerator_type="H100")(lambda: 1).remote()
    with pytest.raises(JobError, match=r"^All nodes for small .*H100.* have been gone for .*_s = 2 s; .*again\.$"):
        finish_tasks("text", [task], "backbones", Compute(wait_for_resources_s=2), needs_of([(small_clip.spec, pool)]))
    assert sum("waiting up to 2 s" in message for message in caplog.messages) == 1
    ray.cancel(task)
    quick = ray.remote(lambda: 1).remote()
    finish_tasks("text", [quick], "backbones", Compute(wait_for_resources_s=2))  # and the watch ends with the wait
