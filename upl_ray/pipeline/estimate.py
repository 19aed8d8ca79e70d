"""One line about the size of a run before it embeds: images, bytes to read, features to store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from upl_ray.corpus.shards import Shard, read_listing
from upl_ray.pipeline.features import missing_shards
from upl_ray.pipeline.inputs import Inputs
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store

SAMPLE = 4  # shards whose listings are read for the mean size of an image
ID_BYTES = 8  # of an image id in a compressed table: 3 measured for numbered files, more for random names


def describe_embedding(inputs: Inputs, steps: Mapping[str, Step], needed: Mapping[str, set[str]]) -> str:
    """`1,797 of 1,797 images to embed: 3.15 MB to read, 1.42 MB of features to store`.

    Args:
        inputs: the corpora and backbones of the run.
        steps: the feature step of each backbone, by its name.
        needed: backbone name -> ids of the shards that must be there.
    """
    shards = {s.id: s for c in inputs.corpora for s in c.shards}
    missing = {name: missing_shards(steps[name], (shards[i] for i in ids)) for name, ids in needed.items()}
    todo = [shards[i] for i in sorted(set().union(*missing.values()))]
    rows, total = sum(s.rows for s in todo), sum(s.rows for s in shards.values())
    features = sum(shards[i].rows * feature_bytes(inputs.specs[name].dim) for name, ids in missing.items() for i in ids)
    mean = mean_bytes(inputs.store, todo, shards.values())
    to_read = f"{format_bytes(rows * mean)} to read" if mean else "bytes to read unknown"
    return f"{rows:,} of {total:,} images to embed: {to_read}, {format_bytes(features)} of features to store"


def feature_bytes(dim: int) -> int:
    """Size in storage of one image's feature and id [bytes]."""
    return 2 * dim + ID_BYTES


def mean_bytes(store: Store, todo: list[Shard], everything: Iterable[Shard]) -> float:
    """Mean size of the images to do [bytes]: their archives' share, or that of a sample of files; 0 if none is known.

    The size of an archive is that of all its images, so those of finished shards count, too. A manifest names no sizes.
    """
    archives = {(s.root, s.archive): _size(s.version) for s in todo if s.archive}
    if archives:
        return sum(archives.values()) / sum(s.rows for s in everything if (s.root, s.archive) in archives)
    versions = [v for s in todo[:SAMPLE] for v in read_listing(store, s.listing, ["version"])["version"].to_pylist()]
    return sum(map(_size, versions)) / max(1, len(versions))


def _size(version: str) -> float:
    """The size of a file by its version, `<bytes>-<time>`."""
    size = version.partition("-")[0]
    return float(size) if size.isdigit() else 0.0


def format_bytes(number: float) -> str:
    """Three digits and a unit: `3.15 MB`, `12,000 TB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB" if number < 999.5 else f"{number:,.0f} TB"
