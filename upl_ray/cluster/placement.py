"""Placement of actors: memory and work of each backbone, and how many actors of which backbone fit where. No Ray.

A pass reads and decodes the images once, for some backbones. The fewer the passes, the less is read and decoded twice.
Ray places actors in its own order on any node with room, and an actor that finds none lets the job wait. So a pass
holds only what finds room in every order (`Space.holds`).

One currency a pass: a share of a GPU is at least the actor's share of that GPU's memory and of the host memory that
goes with a GPU of its node; on CPUs, as many CPUs as its share of the node's memory. What Ray packs by it fits in
memory too.

Memory and work are estimates from what is known of a backbone before it is loaded: good enough to choose how many
actors share a GPU, no promise, since allocators, drivers and other programs take memory too.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from upl_ray.config.settings import Compute, PoolOptions
from upl_ray.errors import JobError, first_line
from upl_ray.upl.clip_spec import ClipSpec

log = logging.getLogger(__name__)

GIB = 2**30
UNITS = 10_000  # of a GPU: Ray counts resources in ten-thousandths
DECODE_CPUS = 2  # left to list, read, decode and write: actors that hold every CPU let the job hang
FINEST = 4  # a small backbone takes at least 1 / (4 * backbones_per_gpu) of a GPU, so that a large one can take more
# Of the smallest variant that Ray gives this name, less what its driver keeps [GiB].
GPU_MEMORY = {"T4": 15, "V100": 16, "L4": 22, "A10G": 22, "A100": 40, "L40S": 44, "H100": 79, "H200": 140}
UNKNOWN_GPU_MEMORY = 16

HOST_BASE = 1.0 * GIB  # Python with torch, open_clip and Ray; measured 0.84 GiB (torch 2.14, Ray 2.60)
CUDA_HOST_BASE = 2.0 * GIB  # the same with CUDA's libraries; an assumption
CUDA_CONTEXT = 0.5 * GIB  # of each process on the GPU; an assumption
MARGIN = 1.25  # over weights and activations, for the allocator's fragments and cuDNN's workspaces; an assumption
UNKNOWN_VALUES = 128  # activation values a pixel of models that are neither CLIP ResNets nor ViTs; RN50x64 has 115
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
PATCH = 16  # pixels: a tower that cannot be counted is taken for a transformer of such patches


# Memory and work of one backbone.


@dataclass(frozen=True)
class Memory:
    """Of one actor [bytes]."""

    host: float
    gpu: float


def memory(spec: ClipSpec, chunk_size: int, on_gpu: bool) -> Memory:
    """Memory of one actor that encodes chunks of `chunk_size` images.

    Weights count in the precision they compute in. Loading holds them twice in host memory: four models in fp32 files,
    loaded on a CPU, took 2.0 times the file above the base.
    """
    value = VALUE_BYTES[spec.backbone.precision]
    working = spec.weights_bytes / 4 * value + chunk_size * pixels(spec) * activation_values(spec) * value
    if on_gpu:
        return Memory(CUDA_HOST_BASE + 2 * spec.weights_bytes, CUDA_CONTEXT + MARGIN * working)
    return Memory(HOST_BASE + max(2 * spec.weights_bytes, working), 0.0)


def pixels(spec: ClipSpec) -> int:
    """Pixels of one crop."""
    return spec.geometry.height * spec.geometry.width


def activation_values(spec: ClipSpec) -> float:
    """Activation values that live at once for each pixel of a crop.

    A CLIP ResNet's peak is its stem, a ViT's one MLP. Counted over all operators of an inference by a dispatch mode:
    ResNets 59 (width 64) to 115 (width 128); ViTs 12.2 (B/32), 39.4 (B/16), 66.3 (L/14), 82.1 (H/14), which is 12.6 to
    16 times width / patch**2.
    """
    vision = json.loads(spec.model_cfg)["vision_cfg"]
    if isinstance(vision.get("layers"), list):
        return float(vision.get("width", 64))
    if vision.get("patch_size") and not vision.get("timm_model_name"):
        return float(16 * vision.get("width", 768) / vision["patch_size"] ** 2)
    return UNKNOWN_VALUES


def cost(spec: ClipSpec) -> float:
    """Work of one image [floating-point operations], by which actors are shared out; operations are not quite seconds.

    A tower that cannot be counted is taken for a transformer that holds all of the weights.
    """
    counted = image_flops(spec.model_cfg)
    return counted or 2 * spec.weights_bytes / 4 * pixels(spec) / PATCH**2


@lru_cache
def image_flops(model_cfg: str) -> int:
    """Operations of one image through the image tower of a model, forward: two for a multiplication with its addition.

    Counted by torch on the meta device, which holds shapes and no weights: 0.1 to 1 s for each of open_clip's models.

    Args:
        model_cfg: open_clip's configuration of the model, as JSON.

    Returns:
        The operations; 0, with a line in the log, if the tower does not run on the meta device.
    """
    # Every worker imports this module, and only drivers count: without these two a worker starts 5 s of CPU sooner.
    import torch
    from open_clip.model import _build_vision_tower  # private; the public ones build the text tower, too
    from torch.utils.flop_counter import FlopCounterMode

    config = json.loads(model_cfg)
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    size = vision.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    try:
        with torch.device("meta"):
            tower = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
            image = torch.empty(1, 3, height, width)
        tower.eval().requires_grad_(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tower(image)
    except RuntimeError as error:
        log.info("%-12s estimated from the size of the weights, as it cannot be counted: %s", "cost", first_line(error))
        return 0
    return int(counter.get_total_flops())


# Nodes, and the actors of one backbone in one pass.


@dataclass(frozen=True)
class Node:
    """All resources of one node, whoever holds them at the moment."""

    cpus: float
    gpus: float = 0.0
    memory: float = math.inf  # of the host, without the object store [bytes]
    accelerators: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    driver: bool = False  # the driver runs on it

    def gpu_memory(self, compute: Compute) -> float:
        """Memory of one of its GPUs [bytes]: `compute.gpu_memory`, or that of its type, or `UNKNOWN_GPU_MEMORY`."""
        known = [GPU_MEMORY[a] for a in self.accelerators if a in GPU_MEMORY]
        return GIB * (compute.gpu_memory or min(known, default=UNKNOWN_GPU_MEMORY))

    def serves(self, options: PoolOptions) -> bool:
        """True if it has the accelerator and the labels that a pool is bound to."""
        accelerator = options.accelerator_type
        return (accelerator is None or accelerator in self.accelerators) and all(
            label_matches(self.labels.get(key), wanted) for key, wanted in options.label_selector.items()
        )


def label_matches(label: str | None, wanted: str) -> bool:
    """True if a label (None: missing) fits a selector of Ray: `value`, `!value`, `in(a, b)`, `!in(a, b)`."""
    values = wanted.removeprefix("!")
    if values.startswith("in("):
        return (label in [v.strip() for v in values[3:-1].split(",")]) != wanted.startswith("!")
    return (label == values) != wanted.startswith("!")


@dataclass(frozen=True)
class Pool:
    """The actors of one backbone in one pass, and the resources that each asks Ray for."""

    num_cpus: float
    num_gpus: float
    memory: int  # of the host [bytes]; 0: not asked for, as a share of a GPU stands for it
    max_actors: int
    device: str
    options: PoolOptions

    def runs_on(self, node: Node) -> bool:
        """True if the node could run one of these actors while nobody else uses it."""
        enough = node.gpus >= max(1, self.num_gpus) if self.num_gpus else node.cpus >= max(1, self.num_cpus)
        return enough and node.serves(self.options)


Pass = list[tuple[ClipSpec, Pool]]


@dataclass(frozen=True)
class Claim:
    """The request of one backbone: `count` actors of `demand` units each, on any of these nodes."""

    spec: ClipSpec
    options: PoolOptions
    nodes: frozenset[int]
    gpus: float | None  # of one actor, as configured; None: to be chosen; 0: none
    cost: float  # of one image [operations]
    demand: int = 0  # of one actor [units]
    limit: int = 1  # actors that are of any use
    count: int = 1  # actors


@dataclass(frozen=True)
class Space:
    """Rooms to place actors in; an actor lies in one room as a whole."""

    unit: str  # "GPU": ten-thousandths of one; "CPU"; "memory": MiB
    rooms: tuple[tuple[int, int], ...]  # (node, units): a GPU, or a node
    crowd: int | None = None  # actors that one room may hold
    spare: int = 0  # units, of all rooms together, that stay free

    def holds(self, claims: Sequence[Claim]) -> bool:
        """True if every actor finds room, in any order and wherever Ray places them.

        An actor finds none only if each of its rooms is taken but for less than its demand, and what is taken comes in
        multiples of the demands' greatest common divisor. If all others together are less than that, it finds one.
        """
        if sum(c.demand * c.count for c in claims) > sum(units for _, units in self.rooms) - self.spare:
            return False
        for claim in claims:
            rivals = [c for c in claims if c.nodes & claim.nodes]
            grain = math.gcd(*(c.demand for c in rivals))
            others = sum(c.demand * c.count for c in rivals) - claim.demand
            mine = [units for node, units in self.rooms if node in claim.nodes and units >= claim.demand]
            blocked = sum(math.ceil((units - claim.demand + 1) / grain) * grain for units in mine)
            if others >= blocked or (self.crowd and _crowd(rivals, max(mine)) > self.crowd):
                return False
        return True


Arrangement = tuple[Space, list[Claim]]


def _crowd(claims: Iterable[Claim], units: int) -> int:
    """The most actors that one room of `units` can hold together."""
    most = 0
    for claim in sorted(claims, key=lambda c: c.demand):
        here = min(claim.count, units // claim.demand)
        most, units = most + here, units - here * claim.demand
    return most


def plan_passes(specs: Sequence[ClipSpec], nodes: Sequence[Node], compute: Compute) -> list[Pass]:
    """Spread backbones over as few passes as surely fit, in each the largest resolution first.

    The actors of a pass are shared out by the cost of the backbones. A backbone that is estimated to need more memory
    than there is gets a pass and a whole GPU or node for itself: the estimate may be too high.

    Raises:
        JobError: no node can serve a backbone.
    """
    groups: list[list[Claim]] = []
    claims = [_claim(s, nodes, compute) for s in specs]
    for claim in sorted(claims, key=lambda c: -_need(c, compute)):  # first fit, the hungriest first
        home = next((g for g in groups if all(_arrangements([*g, claim], nodes, compute))), None)
        if home is None:
            groups.append([claim])
        else:
            home.append(claim)
    passes = [_pools(group, nodes, compute) for group in groups]
    return [sorted(p, key=lambda pool: -pixels(pool[0])) for p in passes]


def _claim(spec: ClipSpec, nodes: Sequence[Node], compute: Compute) -> Claim:
    """The nodes on which a backbone may run; on GPUs if one has any, unless the configuration says otherwise."""
    options = compute.pools.get(spec.name, PoolOptions())
    gpus = options.gpus if options.gpus is not None else compute.gpus_per_backbone
    serving = [i for i, n in enumerate(nodes) if n.serves(options)]
    if gpus is None and not options.accelerator_type and not any(nodes[i].gpus >= 1 for i in serving):
        gpus = 0.0
    found = frozenset(i for i in serving if (nodes[i].cpus if gpus == 0 else nodes[i].gpus) >= 1)
    if not found:
        need = ["a CPU" if gpus == 0 else "a GPU"]
        need += [f"accelerator_type {options.accelerator_type!r}"] if options.accelerator_type else []
        need += [f"{key} {wanted!r}" for key, wanted in options.label_selector.items()]
        raise JobError(
            f"The backbone {spec.name!r} needs a node with {', '.join(need)}, and none of the cluster's {len(nodes)} "
            f"node(s) is one at present; start one, or change compute.pools or compute.gpus_per_backbone."
        )
    return Claim(spec, options, found, gpus, cost(spec))


def _need(claim: Claim, compute: Compute) -> float:
    """Memory of one actor where it is scarcest [bytes]."""
    need = memory(claim.spec, compute.chunk_size, on_gpu=claim.gpus != 0)
    return need.gpu or need.host


def _arrangements(group: list[Claim], nodes: Sequence[Node], compute: Compute) -> list[list[Arrangement]]:
    """The ways in which one actor of each backbone surely fits: a list for those on GPUs, one for those on CPUs."""
    on_gpus, on_cpus = [c for c in group if c.gpus != 0], [c for c in group if c.gpus == 0]
    if on_gpus and on_cpus:  # neither knows of the other's memory: half for each
        nodes = [replace(n, memory=n.memory / 2) for n in nodes]
    alone = len(group) == 1
    ways = [_on_gpus(on_gpus, nodes, compute, alone)] if on_gpus else []
    return ways + ([_on_cpus(on_cpus, nodes, compute, alone)] if on_cpus else [])


def _on_gpus(claims: list[Claim], nodes: Sequence[Node], compute: Compute, alone: bool) -> list[Arrangement]:
    """The shares of a GPU that hold one actor of each, from whole GPUs to the finest."""
    rooms = tuple((i, UNITS) for i, n in enumerate(nodes) for _ in range(int(n.gpus)))
    space = Space("GPU", rooms, compute.backbones_per_gpu)
    ways = (
        [_gpu_demand(c, nodes, compute, sharing, alone) for c in claims]
        for sharing in range(1, FINEST * compute.backbones_per_gpu + 1)
    )
    return [(space, asked) for asked in ways if space.holds(asked)]


def _gpu_demand(claim: Claim, nodes: Sequence[Node], compute: Compute, sharing: int, alone: bool) -> Claim:
    """The claim with its share of a GPU: as configured, or as its memory needs and at least 1 / sharing."""
    mine = [nodes[i] for i in claim.nodes]
    gpus = sum(int(n.gpus) for n in mine)
    if claim.gpus:
        demand = max(1, math.floor(claim.gpus * UNITS + 1e-6))
        return replace(claim, demand=demand, limit=_limit(claim, gpus * (UNITS // demand), compute))
    need = memory(claim.spec, compute.chunk_size, on_gpu=True)
    share = max(max(need.gpu / n.gpu_memory(compute), need.host * n.gpus / n.memory) for n in mine)
    demand = max(UNITS // sharing, math.ceil(100 * share) * UNITS // 100)
    return replace(claim, demand=min(demand, UNITS) if alone else demand, limit=_limit(claim, gpus, compute))


def _on_cpus(claims: list[Claim], nodes: Sequence[Node], compute: Compute, alone: bool) -> list[Arrangement]:
    """Actors that hold CPUs, with two left to decode; on few CPUs, actors that hold memory and run beside tasks."""
    needs = [memory(c.spec, compute.chunk_size, on_gpu=False).host for c in claims]
    space = Space("CPU", tuple((i, int(n.cpus)) for i, n in enumerate(nodes)), spare=DECODE_CPUS)
    asked = []
    for claim, need in zip(claims, needs, strict=True):
        mine = [nodes[i] for i in claim.nodes]
        demand = max(1, math.ceil(max(need * n.cpus / n.memory for n in mine)))
        asked.append(replace(claim, demand=demand, limit=_limit(claim, sum(int(n.cpus) for n in mine), compute)))
    if space.holds(asked):
        return [(space, asked)]
    mib = [int(min(n.memory, 2**60) / 2**20) for n in nodes]
    each = max(1, int(min(sum(nodes[i].cpus for i in c.nodes) for c in claims)) // len(claims))
    beside = [
        replace(c, demand=math.ceil(n / 2**20), limit=_limit(c, each, compute))
        for c, n in zip(claims, needs, strict=True)
    ]
    if alone:
        beside = [replace(c, demand=min(c.demand, max(mib[i] for i in c.nodes))) for c in beside]
    space = Space("memory", tuple(enumerate(mib)))
    return [(space, beside)] if space.holds(beside) else []


def _limit(claim: Claim, useful: int, compute: Compute) -> int:
    return min(useful, claim.options.max_actors or compute.max_actors or useful)


def _pools(group: list[Claim], nodes: Sequence[Node], compute: Compute) -> Pass:
    """The pools of one pass, grown as far as they surely fit: the way in which the slowest backbone gets most."""
    pools = []
    for ways in _arrangements(group, nodes, compute):
        grown = [(space, grow(space, claims)) for space, claims in ways]
        space, claims = max(grown, key=lambda way: min(c.demand * c.count / c.cost for c in way[1]))
        for claim in claims:
            host = memory(claim.spec, compute.chunk_size, on_gpu=space.unit == "GPU").host
            num_gpus = claim.demand / UNITS if space.unit == "GPU" else 0.0
            pool = Pool(
                num_cpus=float(claim.demand) if space.unit == "CPU" else 0.0,
                num_gpus=num_gpus,
                memory={"GPU": 0, "CPU": math.ceil(host), "memory": claim.demand * 2**20}[space.unit],
                max_actors=claim.count,
                device=device_of(num_gpus, compute),
                options=claim.options,
            )
            pools.append((claim.spec, pool))
    return pools


def grow(space: Space, claims: Sequence[Claim]) -> list[Claim]:
    """Add actors one by one, each to the backbone with most cost an actor, as long as all surely fit."""
    grown, growing = list(claims), set(range(len(claims)))
    while growing:
        i = max(growing, key=lambda j: (grown[j].cost / grown[j].count, -j))
        more = [*grown[:i], replace(grown[i], count=grown[i].count + 1), *grown[i + 1 :]]
        if more[i].count <= more[i].limit and space.holds(more):
            grown = more
        else:
            growing.remove(i)
    return grown


def device_of(num_gpus: float, compute: Compute) -> str:
    """The device of an actor that holds `num_gpus`; Ray does not hide GPUs from actors that asked for none."""
    if compute.device == "auto":
        return "cuda" if num_gpus else "cpu"
    return compute.device
