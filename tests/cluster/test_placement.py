"""Placement against a simulated cluster that places actors in any order, published counts and arithmetic by hand."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import open_clip
import pytest
import torch

from upl_ray.cluster.placement import (
    GIB,
    Node,
    Pass,
    Pool,
    activation_values,
    cost,
    image_flops,
    label_matches,
    memory,
    plan_passes,
)
from upl_ray.config.settings import UPL_STAR, Backbone, Compute, Config, PoolOptions
from upl_ray.errors import ConfigError, JobError
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.images import Geometry

ORDER = random.Random(0)
# Millions of parameters, and 10^9 operations of an image (two for a multiplication with its addition, as we count):
# open_clip, docs/model_profile.csv, columns `mparams` and `image_gflops`; its profiler uses the same counter of torch.
PROFILE = {
    "RN50": (102.01, 12.22),
    "RN101": (119.69, 19.54),
    "RN50x4": (178.3, 42.56),
    "RN50x16": (290.98, 149.39),
    "RN50x64": (623.26, 529.11),
    "ViT-B-32": (151.28, 8.82),
    "ViT-B-16": (149.62, 35.13),
    "ViT-L-14": (427.62, 162.03),
}
# Values a pixel that live at once, counted over all operators of an inference.
ACTIVATIONS = {
    "RN50": 59,
    "RN50x4": 73,
    "RN50x16": 87,
    "RN50x64": 115,
    "ViT-B-32": 12.2,
    "ViT-B-16": 39.4,
    "ViT-L-14": 66.3,
}


def spec(model: str, precision: str = "fp16") -> ClipSpec:
    """One of the paper's models, of the size of its published weights."""
    model_cfg = open_clip.get_model_config(model)
    side = model_cfg["vision_cfg"]["image_size"]
    return ClipSpec(
        backbone=Backbone(model=model, name=model, precision=precision),
        source=model,
        weights_sha256="",
        model_cfg=json.dumps(model_cfg),
        geometry=Geometry(side, side, "bicubic", "shortest", 0),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        quick_gelu=True,
        weights_bytes=int(4e6 * PROFILE[model][0]),
    )


class SimulatedNode:
    """A node that actors take from."""

    def __init__(self, node: Node) -> None:
        self.node, self.cpus, self.memory = node, node.cpus, node.memory
        self.gpus = [1.0] * int(node.gpus)
        self.host_estimate, self.gpu_estimates = 0.0, [0.0] * len(self.gpus)
        self.actors = [0] * len(self.gpus)

    def rooms(self, pool: Pool) -> list[int]:
        """GPUs that an actor finds here; [-1] if it needs none and finds the rest."""
        if not self.node.serves(pool.options) or self.cpus < pool.num_cpus or self.memory < pool.memory:
            return []
        return [g for g, free in enumerate(self.gpus) if free >= pool.num_gpus - 1e-9] if pool.num_gpus else [-1]

    def take(self, clip: ClipSpec, pool: Pool, gpu: int, compute: Compute) -> None:
        need = memory(clip, compute.chunk_size, on_gpu=pool.num_gpus > 0)
        self.cpus -= pool.num_cpus
        self.memory -= pool.memory
        self.host_estimate += need.host
        if gpu >= 0:
            self.gpus[gpu] -= pool.num_gpus
            self.gpu_estimates[gpu] += need.gpu
            self.actors[gpu] += 1

    def free(self, gpu: int) -> float:
        return self.gpus[gpu] if gpu >= 0 else self.cpus


Room = tuple[SimulatedNode, int]


def spread(rooms: Sequence[Room]) -> Room:
    return max(rooms, key=lambda room: room[0].free(room[1]))


def pack(rooms: Sequence[Room]) -> Room:
    return min(rooms, key=lambda room: room[0].free(room[1]))


def place(planned: Pass, nodes: Sequence[Node], compute: Compute, choose: Callable[[Sequence[Room]], Room]) -> None:
    """Place every actor that a pass may ever have; each must find room, and the memory it needs must be there."""
    cluster = [SimulatedNode(n) for n in nodes]
    actors = [(s, p) for s, p in planned for _ in range(p.max_actors)]
    ORDER.shuffle(actors)
    for clip, pool in actors:
        rooms = [(n, gpu) for n in cluster for gpu in n.rooms(pool)]
        assert rooms, f"{clip.name} finds no room"
        node, gpu = choose(rooms)
        node.take(clip, pool, gpu, compute)
    for n in cluster:
        assert max(n.actors, default=0) <= compute.backbones_per_gpu
        if len(planned) > 1 and not compute.gpus_per_backbone:  # alone, or with a given share, it is tried anyway
            assert n.host_estimate <= n.node.memory
            assert max(n.gpu_estimates, default=0.0) <= n.node.gpu_memory(compute)


def check(specs: Sequence[ClipSpec], nodes: Sequence[Node], compute: Compute) -> list[Pass]:
    """Plan the passes, and check everything that they promise."""
    passes = plan_passes(specs, nodes, compute)
    assert sorted(s.name for p in passes for s, _ in p) == sorted(s.name for s in specs)
    ORDER.seed(0)
    for planned in passes:
        pixels = [s.geometry.height * s.geometry.width for s, _ in planned]
        assert pixels == sorted(pixels, reverse=True)
        for pool in (p for _, p in planned):
            assert 1 <= pool.max_actors <= (pool.options.max_actors or compute.max_actors or 10**6)
            assert not (pool.num_cpus and pool.num_gpus)
        if any(p.num_cpus for _, p in planned):
            assert sum(p.num_cpus * p.max_actors for _, p in planned) <= sum(int(n.cpus) for n in nodes) - 2
        for choose in (spread, pack, ORDER.choice, ORDER.choice):
            place(planned, nodes, compute, choose)
    return passes


def pools(passes: list[Pass]) -> dict[str, Pool]:
    return {s.name: p for planned in passes for s, p in planned}


CLUSTERS = {
    "1 CPU": [Node(1, memory=2 * GIB)],
    "2 CPUs": [Node(2, memory=16 * GIB)],
    "4 CPUs": [Node(4, memory=16 * GIB)],
    "16 CPUs, little memory": [Node(16, memory=20 * GIB)],
    "3 nodes of 32 CPUs": [Node(32, memory=90 * GIB)] * 3,
    "uneven CPUs": [Node(2, memory=4 * GIB), Node(48, memory=180 * GIB), Node(0, memory=2 * GIB)],
    "1 GPU": [Node(8, 1, 60 * GIB)],
    "T4 with little host memory": [Node(4, 1, 11 * GIB, frozenset({"T4"}))],
    "2 GPUs": [Node(16, 2, 100 * GIB)],
    "3 GPUs on 2 nodes": [Node(8, 1, 40 * GIB), Node(16, 2, 60 * GIB)],
    "8 A100": [Node(96, 8, 700 * GIB, frozenset({"A100"}))],
    "16 nodes of one GPU, CPU head": [Node(4, memory=12 * GIB), *[Node(8, 1, 30 * GIB)] * 16],
    "mixed GPUs": [Node(8, 1, 30 * GIB, frozenset({"T4"})), Node(32, 4, 200 * GIB, frozenset({"A100"}))],
}
SETTINGS: dict[str, Compute] = {
    "defaults": Compute(),
    "at most 3 actors": Compute(max_actors=3),
    "2 a GPU": Compute(backbones_per_gpu=2),
    "1 a GPU": Compute(backbones_per_gpu=1),
    "40 GiB": Compute(gpu_memory=40),
    "a third of a GPU": Compute(gpus_per_backbone=1 / 3),
    "whole GPUs": Compute(gpus_per_backbone=1),
    "on CPUs": Compute(gpus_per_backbone=0),
    "one whole, one on CPUs": Compute(pools={"RN50": PoolOptions(gpus=1), "RN101": PoolOptions(gpus=0)}),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_whatever_the_order_every_actor_finds_room_and_memory(cluster: str, setting: str) -> None:
    nodes, compute = CLUSTERS[cluster], SETTINGS[setting]
    needs_gpu = bool(compute.gpus_per_backbone) or any(o.gpus for o in compute.pools.values())
    for count, precision in itertools.product((1, 2, 3, 5, 8), ("fp16", "fp32")):
        specs = [spec(m, precision) for m in UPL_STAR[:count]]
        if needs_gpu and not any(n.gpus for n in nodes):
            with pytest.raises(JobError, match="needs a node with a GPU"):
                plan_passes(specs, nodes, compute)
            continue
        check(specs, nodes, compute)


@pytest.mark.parametrize(
    ("nodes", "precision", "passes"),
    [
        ([Node(16, 1, 60 * GIB, frozenset({"H100"}))], "fp32", 1),
        ([Node(16, 1, 60 * GIB, frozenset({"A10G"}))], "fp16", 1),  # 18 of 22 GiB
        ([Node(16, 1, 60 * GIB, frozenset({"A10G"}))], "fp32", 2),  # 31 of 22 GiB
        ([Node(16, 1, 60 * GIB)], "fp32", 3),
        ([Node(96, 8, 700 * GIB, frozenset({"A100"}))], "fp32", 1),
        ([Node(64, memory=180 * GIB)], "fp32", 1),
        ([Node(4, memory=60 * GIB)], "fp32", 1),  # fewer CPUs than backbones: beside the tasks
    ],
)
def test_passes_of_the_papers_eight_backbones(nodes: list[Node], precision: str, passes: int) -> None:
    assert len(check([spec(m, precision) for m in UPL_STAR], nodes, Compute())) == passes


def test_more_whole_gpu_pools_than_gpus_are_several_passes_instead_of_a_wait() -> None:
    specs = [spec(m) for m in UPL_STAR[:3]]
    whole = Compute(pools={s.name: PoolOptions(gpus=1) for s in specs})
    assert [len(p) for p in check(specs, [Node(4, 1)], whole)] == [1, 1, 1]
    assert [len(p) for p in check(specs, [Node(4, 2)], whole)] == [2, 1]
    assert [len(p) for p in check(specs, [Node(4, 3)], whole)] == [3]


def test_shares_fill_gpus_and_the_costliest_backbone_gets_most_actors() -> None:
    planned = pools(check([spec(m) for m in UPL_STAR], [Node(96, 8, 700 * GIB, frozenset({"A100"}))], Compute()))
    actors = {name: p.max_actors for name, p in planned.items()}
    assert actors["RN50x64"] == max(actors.values()) == 7
    assert actors["RN50"] == 1
    assert sum(p.max_actors * p.num_gpus for p in planned.values()) == pytest.approx(8, abs=0.01)
    alone = pools(check([spec("RN50")], [Node(8, 4, 60 * GIB)], Compute()))["RN50"]
    assert (alone.num_gpus, alone.max_actors, alone.device) == (1.0, 4, "cuda")


def test_a_third_of_a_gpu_fits_three_times() -> None:
    for share in (1 / 3, 0.3333, 1 / 7, 0.1428):
        pool = pools(check([spec("RN50")], [Node(8, 1)], Compute(gpus_per_backbone=share)))["RN50"]
        assert pool.max_actors == (3 if share > 0.3 else 7)


def test_too_big_a_backbone_is_tried_alone() -> None:
    specs = [spec(m, "fp32") for m in ("RN50x64", "RN50", "ViT-B-32")]
    passes = check(specs, [Node(8, 1, 60 * GIB)], Compute(gpu_memory=6))
    assert [[s.name for s, _ in p] for p in passes] == [["RN50x64"], ["RN50", "ViT-B-32"]]
    assert passes[0][0][1].num_gpus == 1.0
    assert len(check(specs[:1], [Node(2, memory=1 * GIB)], Compute())) == 1


def test_pools_bound_to_accelerators_and_labels_get_slots_where_these_are() -> None:
    t4, a100 = frozenset({"T4"}), frozenset({"A100"})
    nodes = [Node(8, 1, 40 * GIB, t4, {"zone": "a"}), Node(16, 2, 90 * GIB, a100, {"zone": "b"})]
    specs = [spec("RN50"), spec("ViT-L-14")]
    bound = {"RN50": PoolOptions(accelerator_type="T4"), "ViT-L-14": PoolOptions(accelerator_type="A100")}
    planned = pools(check(specs, nodes, Compute(pools=bound)))
    assert (planned["RN50"].max_actors, planned["ViT-L-14"].max_actors) == (1, 2)
    zone = Compute(pools={"RN50": PoolOptions(label_selector={"zone": "b"}, max_actors=1)})
    assert pools(check(specs[:1], nodes, zone))["RN50"].max_actors == 1
    crowd = Compute(pools={s.name: PoolOptions(accelerator_type="T4", gpus=1) for s in specs})
    assert len(check(specs, nodes, crowd)) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accelerator_type": "H100"}, ["'RN50'", "a GPU", "accelerator_type 'H100'", "start one", "compute.pools"]),
        ({"label_selector": {"zone": "c"}, "gpus": 0}, ["a CPU", "zone 'c'", "2 node(s)"]),
        ({"label_selector": {"zone": "cpu"}, "gpus": 0.5}, ["a GPU", "zone 'cpu'", "gpus_per_backbone"]),
    ],
)
def test_a_pool_that_no_node_serves_is_refused_at_once(options: dict[str, object], words: list[str]) -> None:
    nodes = [Node(8, 1, accelerators=frozenset({"T4"}), labels={"zone": "a"}), Node(8, labels={"zone": "cpu"})]
    compute = Compute(pools={"RN50": PoolOptions.model_validate(options)})
    with pytest.raises(JobError) as refusal:
        plan_passes([spec("RN50")], nodes, compute)
    assert all(w in str(refusal.value) for w in words), refusal.value


def test_label_selectors_match_as_in_ray() -> None:
    """The table was made by Ray 2.60: a task with the selector ran, or waited, on a node with this label."""
    on_a = {"a": True, "!a": False, "in(a,b)": True, "in(a, b)": True, "!in(a,b)": False, "": False}
    for wanted, runs in on_a.items():
        assert label_matches("a", wanted) is runs, wanted
    for wanted, runs in {"x": False, "!x": True, "!in(x,y)": True, "": False}.items():
        assert label_matches(None, wanted) is runs, wanted


@pytest.mark.parametrize("model", PROFILE)
def test_operations_of_an_image_are_those_of_open_clips_profile(model: str) -> None:
    state = torch.get_rng_state()
    assert cost(spec(model)) / 1e9 == pytest.approx(PROFILE[model][1], abs=0.005)
    assert torch.equal(state, torch.get_rng_state())  # nothing is drawn for weights that nobody needs


def test_operations_are_counted_for_towers_of_timm() -> None:
    model_cfg = open_clip.get_model_config("ViT-B-16-SigLIP")
    assert model_cfg["vision_cfg"]["timm_model_name"]
    assert image_flops(json.dumps(model_cfg)) / 1e9 == pytest.approx(35.42, abs=0.005)  # the same profile


def test_a_tower_that_cannot_be_counted_costs_its_weights(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "upl_ray")
    vision = {"timm_model_name": "vgg11", "timm_pool": "", "image_size": 224}  # its projection does not fit
    clip = replace(spec("ViT-B-16"), model_cfg=json.dumps({"embed_dim": 512, "vision_cfg": vision}))
    assert cost(clip) == 2 * clip.weights_bytes / 4 * (224 / 16) ** 2
    assert cost(clip) > 0
    assert [m.split(":")[0].split(maxsplit=1)[1] for m in caplog.messages] == [
        "estimated from the size of the weights, as it cannot be counted"
    ]


def test_memory_is_of_the_size_of_what_was_measured() -> None:
    for model, values in ACTIVATIONS.items():
        assert values / 1.02 <= activation_values(spec(model)) <= 1.25 * values + 3, model
    host = {"RN50": 1.96, "ViT-B-32": 1.97}  # peak of a process that loaded the model and encoded 64 crops [GiB]
    for model, measured in host.items():
        assert measured <= memory(spec(model, "fp32"), 64, on_gpu=False).host / GIB <= 1.3 * measured


def test_options_of_a_backbone_that_is_none_are_refused() -> None:
    good = {"corpus": {"uri": "/i"}, "classnames": ["a", "b"], "backbones": ["RN50/openai"], "storage_path": "/r"}
    Config.model_validate(good | {"compute": {"pools": {"RN50-openai": {"gpus": 0.5}}}})
    for wrong, words in (
        ({"RN51": {"gpus": 0.5}}, "compute.pools names 'RN51'"),
        ({"RN50-openai": {"gpus": 2}}, "less than or equal to 1; it is 2"),
        ({"RN50-openai": {"gpu": 1}}, "there is no such field"),
    ):
        with pytest.raises(ConfigError, match=words):
            Config(**good | {"compute": {"pools": wrong}})
