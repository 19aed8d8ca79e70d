"""Scored and validation images must not be learned from: no image may lie in two image sets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from upl_ray.artifacts import IO_THREADS
from upl_ray.corpus import Corpus, Shard
from upl_ray.section import ConfigError


@dataclass(frozen=True)
class ImageSet:
    """A corpus by the name of its field, and the folders that its images may lie in."""

    field: str
    corpus: Corpus
    roots: tuple[str, ...]  # of the source, for absolute addresses in manifests

    @property
    def folders(self) -> set[str]:
        """Every image lies below one of these; a local one may be linked from anywhere."""
        roots = (*self.roots, *(s.root for s in self.corpus.shards))
        return {"/" if is_local(root) else f"{root.rstrip('/')}/" for root in roots}

    def places(self) -> Iterator[str]:
        """Address of every image's file, or of every archive; links are followed."""
        archives = {f"{s.root.rstrip('/')}/{s.archive}" for s in self.corpus.shards if s.archive}
        yield from map(real_place, archives)
        with ThreadPoolExecutor(IO_THREADS) as pool:
            for found in pool.map(self._files, (s for s in self.corpus.shards if not s.archive)):
                yield from found

    def _files(self, shard: Shard) -> list[str]:
        table = self.corpus.listing(shard, ["image_id", "file"])
        rows = zip(table["image_id"].to_pylist(), table["file"].to_pylist(), strict=True)
        files = (file for image_id, file in rows if image_id not in shard.removed)
        folder = shard.root.rstrip("/")
        return [real_place(f if "://" in f or f.startswith("/") else f"{folder}/{f}") for f in files]


def is_local(address: str) -> bool:
    """Whether this machine's file system is meant."""
    return "://" not in address or address.startswith("file://")


def real_place(address: str) -> str:
    """The one path of a local file, however it is linked and written; other addresses as they are."""
    if not is_local(address):
        return address
    path = address.removeprefix("file://")
    folder, name = os.path.split(path)
    return os.path.realpath(path) if os.path.islink(path) else f"{_real_folder(folder)}/{name}"


@cache
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def check_apart(sets: Iterable[ImageSet]) -> None:
    """Refuse image sets that share an image.

    Listings are read only where one's folders lie within the other's. Local ones always are, and each file is looked
    at: links may lead anywhere. That takes about 15 microseconds a file.

    Raises:
        ConfigError: an accuracy would be told on images that were learned from.
    """
    first, *others = sets
    for other in others:
        if not _may_meet(first.folders, other.folders):
            continue
        theirs = set(other.places())
        shared = [place for place in first.places() if place in theirs]
        if shared:
            raise ConfigError(
                f"{len(shared)} of {len(theirs)} files of {other.field} are files of {first.field}, too, for example "
                f"{min(shared)!r}; images that are learned from are not held out. Take them out of one of the two, or "
                f"give their labels as {first.field}.labels (a manifest may leave other labels empty)."
            )


def _may_meet(one: set[str], other: set[str]) -> bool:
    return any(a.startswith(b) or b.startswith(a) for a in one for b in other)
