"""What a run will cost, on paper: bytes, requests, hours, and which stage holds it up.

Speeds come from `speeds.py`, or are given as `measured`. Nothing here is promised: it tells hours from months.
docs/scaling.md applies it to a billion images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upl_ray import speeds, workload
from upl_ray.speeds import Model
from upl_ray.workload import ID_BYTES, Images, Learning, Machines

IO_THREADS = 16  # requests in flight of one reader; tests compare it with artifacts.IO_THREADS
LATENCY_S = 0.03  # of one request; object stores answer in 10 to 50 ms
GETS_PER_S = 5500  # of one prefix: Amazon S3's documentation, "Optimizing Amazon S3 performance"; it splits hot ones
# S3 Standard, us-east-1: 0.0004 and 0.005 dollars a thousand (published: aws.amazon.com/s3/pricing; they change).
GET_DOLLARS, PUT_DOLLARS = 4e-7, 5e-6
START_S = 20  # until the first image is embedded: Ray, actors, models (the demo on two cores)
LISTED_BYTES = 400  # of the driver's memory for each listed file: measured, the peak of `list_corpus`


@dataclass(frozen=True)
class Estimate:
    """What the run will cost; hours are of one GPU or core unless they are called wall hours."""

    images: Images
    device: str  # what encodes: a GPU's name, or `core`
    read_bytes: float
    feature_bytes: dict[str, float]  # of each backbone, for the images to do
    label_bytes: float  # pseudo-labels of the images to do and predictions of all, at most
    view_bytes: float
    weights_bytes: float  # that every node fetches once
    lists: int
    gets: int  # HEAD included
    puts: int
    decode_hours: float
    forward_hours: dict[str, float]
    view_hours: float  # encoding the view bank
    classify_hours: float  # pseudo-labels and predictions, of a core
    train_hours: float
    stage_wall_hours: dict[str, float]  # of embedding, each stage as if it were alone
    driver_wall_hours: float  # that the driver reads one small file after the other
    driver_bytes: float  # of the driver's memory for the listing
    imbalance: float  # how many times faster pools in proportion to the work would encode
    half: bool  # all backbones compute in half precision

    @property
    def bottleneck(self) -> str:
        """The stage that holds embedding up: read, requests, decode or forward."""
        return max(self.stage_wall_hours, key=self.stage_wall_hours.__getitem__)

    @property
    def embed_wall_hours(self) -> float:
        """Wall hours of embedding, start-up included: stages overlap, the slowest counts; cores decode and encode."""
        stages = self.stage_wall_hours
        busy = stages["decode"] + stages["forward"] if self.device == "core" else 0.0
        return max(busy, *stages.values()) + START_S / 3600 if self.images.todo else 0.0

    @property
    def request_dollars(self) -> float:
        """Price of all requests at published S3 prices."""
        return self.gets * GET_DOLLARS + (self.puts + self.lists) * PUT_DOLLARS

    @property
    def heaviest(self) -> str:
        """The backbone that takes longest."""
        return max(self.forward_hours, key=self.forward_hours.__getitem__)

    @property
    def setting(self) -> str:
        """What moves the bottleneck."""
        fixed = {
            "read": "more nodes, or smaller images in storage",
            "requests": "tar or Parquet files of many images, or more prefixes",
            "decode": "more CPUs",
        }
        if self.bottleneck in fixed:
            return fixed[self.bottleneck]
        words = [] if self.half or self.device == "core" else ["precision: fp16 of the backbones"]
        if self.imbalance > 1.2:
            words.append(f"actors in proportion to the backbones' work ({self.imbalance:.1f} times faster)")
        words.append("GPUs instead of cores" if self.device == "core" else "more GPUs")
        return ", ".join(words + ([f"or leaving {self.heaviest} out"] if len(self.forward_hours) > 1 else []))

    def lines(self) -> list[str]:
        """What the job says at its start."""
        features, forward = sum(self.feature_bytes.values()), sum(self.forward_hours.values())
        share = 100 * self.forward_hours[self.heaviest] / max(forward, 1e-12)
        lines = [
            f"{self.images.todo:,} of {self.images.total:,} images to embed: {size(self.read_bytes)} to read, "
            f"{size(features)} of features to store",
            f"embedding about {span(self.embed_wall_hours)}: {span(forward)} of one {self.device} "
            f"({self.heaviest} {share:.0f} %), {span(self.decode_hours)} of one core to decode",
            f"held up by {self.bottleneck}; what moves it: {self.setting}",
            f"then about {span(self.view_hours + self.train_hours)} of one {self.device} for views and training, "
            f"{span(self.classify_hours)} of one core for labels and predictions",
        ]
        if self.images.remote:
            lines.append(f"{self.gets:,} reading, {self.puts:,} writing and {self.lists:,} listing requests")
        return lines


def estimate(
    images: Images,
    models: Sequence[Model],
    target: str,
    learning: Learning,
    machines: Machines,
    measured: Mapping[str, float] | None = None,
    pools: Sequence[Mapping[str, float]] = (),
) -> Estimate:
    """Costs of one variant labeled by `models` and learned for the one called `target`.

    `measured` overrides speeds: images/s of one GPU (or core) for a model's name, of one core for `decode`.
    `pools` says what each backbone of each pass over the images holds [GPUs, or cores], as planned; empty: one pass,
    with GPUs in proportion to the work.
    """
    measured = measured or {}
    gpu = machines.gpu if machines.gpus else ""
    rate = {m.name: measured.get(m.name) or speeds.images_per_s(m, gpu) for m in models}
    pixels = images.pixels_each or images.bytes_each / speeds.BYTES_PER_PIXEL
    groups = [[m for m in models if m.name in pool] for pool in pools] or [list(models)]
    crops = [{(m.height, m.width) for m in group} for group in groups]
    decode_s = sum(speeds.decode_s(images.bytes_each, pixels, sizes) for sizes in crops)
    decode_s = len(groups) / measured["decode"] if "decode" in measured else decode_s
    chosen = next(m for m in models if m.name == target)
    selected = min(images.total, learning.classes * learning.top_k)
    steps = learning.epochs * max(1, selected // learning.batch_size)
    step = speeds.train_step_gflops(chosen, learning.classes, learning.n_ctx, learning.tokens_per_class)
    fp32 = learning.precision == "fp32"
    train_speed = 1e3 * speeds.GPUS[gpu][fp32] * speeds.TRAIN_FRACTION if gpu else speeds.CORE_GFLOPS
    members, votes = learning.members, learning.members * math.log2(max(2, learning.classes)) / 8
    # Pseudo-labels of new images; predictions of all, as new images mean new prompts: probabilities, then votes.
    products = images.todo * sum(m.dim for m in models) + images.total * 2 * members * chosen.dim
    label_bytes = images.todo * (ID_BYTES + 8 * (1 + len(models))) + images.total * (ID_BYTES + 8 + votes)
    lists, gets, puts = workload.requests(images, models, chosen, learning, machines, len(groups))
    stages, imbalance = _stages(images, rate, decode_s, machines, pools)
    shards = -(-images.total // machines.shard_size)
    read_one = 2 * LATENCY_S / IO_THREADS / 3600
    return Estimate(
        images=images,
        device=gpu or "core",
        read_bytes=len(groups) * images.todo * images.bytes_each,
        feature_bytes={m.name: images.todo * float(2 * m.dim + ID_BYTES) for m in models},
        label_bytes=label_bytes,
        view_bytes=selected * (2.0 * chosen.dim * max(1, learning.views) + ID_BYTES),
        weights_bytes=sum(m.weights_bytes for m in models),
        lists=lists,
        gets=gets,
        puts=puts,
        decode_hours=images.todo * decode_s / 3600,
        forward_hours={m.name: images.todo / rate[m.name] / 3600 for m in models},
        view_hours=selected * max(1, learning.views) / rate[target] / 3600,
        classify_hours=2 * learning.classes * products / speeds.CORE_GFLOPS / 3600e9,
        train_hours=learning.members * steps * step / train_speed / 3600,
        stage_wall_hours=stages,
        driver_wall_hours=shards * (len(models) + 3) * read_one if images.remote else 0.0,
        driver_bytes=images.total / images.per_file * LISTED_BYTES,
        imbalance=imbalance,
        half=all(m.precision != "fp32" for m in models),
    )


def _stages(
    images: Images,
    rate: dict[str, float],
    decode_s: float,
    machines: Machines,
    pools: Sequence[Mapping[str, float]],
) -> tuple[dict[str, float], float]:
    """Wall hours of each stage of embedding as if it were alone, and what proportionate pools would gain."""
    balanced = sum(1 / r for r in rate.values()) / (machines.gpus or machines.cpus)
    forward = sum(max(1 / rate[m] / units for m, units in pool.items()) for pool in pools) or balanced
    single = images.remote and images.per_file == 1
    reads = workload.reads(images.bytes_each) if single else 0
    passes, workers = max(1, len(pools)), machines.decode_workers or machines.cpus
    seconds = {  # an image
        "forward": forward,
        "decode": (decode_s + passes * reads * LATENCY_S / IO_THREADS) / workers,  # a worker reads, then decodes
        "read": passes * images.bytes_each / machines.network_bytes_s,
    }
    if single:
        seconds["requests"] = passes * reads / GETS_PER_S / machines.prefixes
    return {stage: images.todo * s / 3600 for stage, s in seconds.items()}, forward / balanced


def size(number: float) -> str:
    """Bytes as a person reads them: `3.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{amount(number)} TB"


def amount(number: float) -> str:
    """Three digits, or all before the point: `0.0331`, `2,821`."""
    return f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"


def span(hours: float) -> str:
    """Hours as a person reads them: `40 s`, `2.5 h`, `12 days`."""
    if hours < 1 / 60:
        return f"{3600 * hours:.2g} s"
    if hours < 1:
        return f"{60 * hours:.2g} min"
    return (
        f"{hours:.2g} h" if hours < 48 else f"{hours / 24:.2g} days" if hours < 99 * 24 else f"{hours / 24:,.0f} days"
    )
