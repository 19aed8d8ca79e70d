"""What a run consists of: corpus, recipe and cluster as plain values, and its requests to object storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from upl_ray.speeds import GPUS, Model

# The shapes of the job's work; tests compare them with the modules that own them.
CHUNKS_PER_PART, CHUNKS_PER_SPAN = 16, 8

# Measured against an S3 server with pyarrow 26: reading a file is a HEAD and a GET for each 256 KiB, writing one is
# three requests (create, part, complete), a LIST names 1,000 files.
READ_BYTES, WRITE_REQUESTS, LIST_FILES = 256 * 1024, 3, 1000
ID_BYTES = 8  # of an image id in a compressed table: 3 measured for numbered files, more for random names


@dataclass(frozen=True)
class Images:
    """The corpus."""

    total: int
    todo: int  # without features yet
    bytes_each: float = 100e3  # mean size of a file; the listing knows it
    pixels_each: float | None = None  # None: from the bytes
    per_file: int = 1  # images of one tar or Parquet file; 1: every image is a file
    remote: bool = True  # in object storage, as the results are; False: a disk, without requests


@dataclass(frozen=True)
class Learning:
    """The recipe; the defaults are the paper's."""

    classes: int = 1000
    top_k: int = 16
    views: int = 50
    members: int = 16
    epochs: int = 50
    batch_size: int = 32
    n_ctx: int = 16
    tokens_per_class: float = 4.5  # of name, "." and EOS: ImageNet's names
    precision: str = "fp32"


@dataclass(frozen=True)
class Machines:
    """The cluster, and how the job spreads over it."""

    cpus: float = 8
    gpus: float = 1
    gpu: str = "RTX 3090"  # a name of `speeds.GPUS`
    decode_workers: float | None = None  # None: all CPUs
    network_bytes_s: float = 600e6  # that all nodes together read: assumed, about 5 Gbit/s
    prefixes: int = 1  # that the object store has split the corpus into
    shard_size: int = 4096
    chunk_size: int = 64

    def __post_init__(self) -> None:
        """Refuse a GPU whose speed is not known."""
        if self.gpu not in GPUS:
            raise ValueError(f"No speed is known of the GPU {self.gpu!r}; name the nearest of {', '.join(GPUS)}.")


def reads(size_bytes: float) -> int:
    """Requests that reading one file of object storage takes."""
    return 1 + max(1, math.ceil(size_bytes / READ_BYTES))


def requests(
    images: Images, models: Sequence[Model], target: Model, learning: Learning, machines: Machines, passes: int = 1
) -> tuple[int, int, int]:
    """LIST, GET (and HEAD) and PUT requests to object storage, of one variant; images are read once a pass."""
    if not images.remote:
        return 0, 0, 0
    shard = machines.shard_size
    new, shards = -(-images.todo // shard), -(-images.total // shard)
    part = machines.chunk_size * CHUNKS_PER_PART
    parts, spans = -(-shard // part), -(-shard // (machines.chunk_size * CHUNKS_PER_SPAN))
    features = {m.name: 2 + parts * reads(part * (2 * m.dim + ID_BYTES)) for m in models}  # of one shard, read back
    classifier = reads(4 * learning.members * learning.classes * target.dim)
    labels = reads(shard * (2 * ID_BYTES + 8 * (1 + len(models))))
    ranged = 2 * new * spans  # of tar and Parquet files; assumed: a HEAD and a GET for each span of images
    pictures = images.todo * reads(images.bytes_each) if images.per_file == 1 else ranged
    gets = (
        passes * pictures
        + passes * new * spans * 2  # the shard's listing, by every decoding task
        + shards * 2 * len(models)  # rejected images
        + new * (2 * len(models) + sum(features.values()))  # pseudo-labels
        + shards * (2 + labels)  # selection
        + shards * (classifier + features[target.name] + 2)  # predictions: new prompts classify all images
    )
    puts = WRITE_REQUESTS * (new * (1 + len(models) * (parts + 1) + 2) + shards * 2)
    return math.ceil(images.total / images.per_file / LIST_FILES), gets, puts
