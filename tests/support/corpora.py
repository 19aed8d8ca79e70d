"""Corpora of tests that decode nothing: files and tar archives with any bytes, listed and read."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

from upl_ray.config.settings import Source
from upl_ray.corpus.read import read_images
from upl_ray.corpus.shards import Corpus, list_corpus
from upl_ray.storage.store import Store

Contents = dict[str, bytes]


def contents(n: int, seed: int = 0) -> Contents:
    """Names in two folders and bytes of very different lengths."""
    rng = random.Random(seed)
    return {f"{'ab'[i % 2]}/{i:03d}.jpg": rng.randbytes(rng.choice([0, 1, 511, 512, 513, 70_000])) for i in range(n)}


def write_tar(path: Path, members: Contents) -> None:
    """Members by name, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_files(root: Path, files: Contents) -> None:
    """Files by name below a folder."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def listed(tmp_path: Path, uri: object, shard_size: int = 7, **source: object) -> Corpus:
    """The corpus at one address or several, kept in `<tmp_path>/run`."""
    given = Source(uri=uri if isinstance(uri, tuple) else str(uri), **source)  # type: ignore[arg-type]
    return list_corpus(Store(str(tmp_path / "run")), given, shard_size)


def read_all(corpus: Corpus, max_bytes: int = 10**6) -> dict[str, bytes | str]:
    """Bytes or reason of every present image, read three at a time."""
    found: dict[str, bytes | str] = {}
    for shard in corpus.shards:
        listing = corpus.listing(shard)
        for first in range(0, shard.rows, 3):
            some = listing.slice(first, 3)
            ids = some["image_id"].to_pylist()
            data = read_images(shard.root, some, max_bytes)
            found |= {i: d for i, d in zip(ids, data, strict=True) if i not in shard.removed}
    return found


def labels(corpus: Corpus) -> dict[str, str | None]:
    """Image id -> label that the source gives."""
    return {i: label for shard in corpus.shards for i, label in corpus.labels(shard).items()}
