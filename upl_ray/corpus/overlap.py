"""Held-out images must not be learned from: no file may lie in two image sets.

Local addresses are compared by the real path of their folder. Links inside of a root are not followed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations, product

import numpy as np

from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.errors import ConfigError
from upl_ray.storage.store import is_remote, read_ahead

SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}  # other names of the same storage


@dataclass(frozen=True)
class ImageSet:
    """A corpus, the field of the configuration that names it, and the source's roots."""

    field: str
    corpus: Corpus
    roots: tuple[str, ...]  # a manifest's absolute addresses lie below these

    @property
    def folders(self) -> set[str]:
        """Addresses, each with a slash behind it; every image lies below one of them."""
        roots = {*self.roots, *(s.root for s in self.corpus.shards)}
        return {real_address(f"{root.rstrip('/')}/") for root in roots}

    def addresses(self) -> Iterator[str]:
        """Address of every image's file, and of every archive."""
        shards = self.corpus.shards
        yield from {real_address(f"{s.root.rstrip('/')}/{s.archive}") for s in shards if s.archive}
        yield from self.addresses_of_files()

    def addresses_of_files(self) -> Iterator[str]:
        """Address of every image that is a file by itself, as often as it is listed."""
        for of_shard in read_ahead((s for s in self.corpus.shards if not s.archive), self._addresses_of):
            yield from of_shard

    def _addresses_of(self, shard: Shard) -> list[str]:
        table = self.corpus.listing(shard, ["image_id", "file"])
        rows = zip(table["image_id"].to_pylist(), table["file"].to_pylist(), strict=True)
        files = (file for image_id, file in rows if image_id not in shard.removed)
        folder = shard.root.rstrip("/")
        return [real_address(f if is_remote(f) or f.startswith("/") else f"{folder}/{f}") for f in files]


def check_apart(sets: Iterable[ImageSet]) -> None:
    """Refuse image sets that share a file. Listings are read only where the folders of two sets meet.

    Raises:
        ConfigError: two sets share a file, so that accuracy would be measured on images that were learned from.
    """
    for first, other in combinations(sets, 2):
        if not any(a.startswith(b) or b.startswith(a) for a, b in product(first.folders, other.folders)):
            continue
        held_out = set(other.addresses())
        shared = [a for a in first.addresses() if a in held_out]
        if shared:
            raise ConfigError(
                f"{len(shared)} of {len(held_out)} files of {other.field} are files of {first.field}, too, for example "
                f"{min(shared)!r}; images that are learned from are not held out. Take them out of one of the two, or "
                f"give their labels as {first.field}.labels (a manifest may leave other labels empty)."
            )


def check_once(images: ImageSet) -> None:
    """Refuse an image set that holds a file under two of its addresses.

    Raises:
        ConfigError: one does, so that an image would count twice.
    """
    corpus = images.corpus
    roots = {real_address(f"{s.root.rstrip('/')}/") for s in corpus.shards}
    if len(corpus.roots) == 1:
        return
    meet = len(roots) < len(corpus.roots) or any(a.startswith(b) for a, b in permutations(roots, 2))
    if not meet and all(map(is_remote, roots)):  # links lead from one local folder into another
        return
    shards = Counter((s.root, s.archive, s.id) for s in corpus.shards if s.archive)
    archives = Counter(real_address(f"{root.rstrip('/')}/{archive}") for root, archive in {key[:2] for key in shards})
    doubled = {a for a, n in archives.items() if n > 1} | _doubled(images.addresses_of_files)
    doubled |= {f"{root.rstrip('/')}/{archive}" for (root, archive, _), n in shards.items() if n > 1}
    if doubled:
        raise ConfigError(
            f"{images.field}.uri names {len(doubled)} files under two of its addresses, for example {min(doubled)!r}; "
            f"name each once."
        )


def _doubled(addresses: Callable[[], Iterator[str]]) -> set[str]:
    """Those that come twice. Their hashes, 8 bytes each, show whether there are any."""
    hashes = np.fromiter(map(hash, addresses()), np.int64)
    if len(np.unique(hashes)) == len(hashes):
        return set()
    return {a for a, n in Counter(addresses()).items() if n > 1}


def real_address(address: str) -> str:
    """A local file by the real path of its folder; other addresses with one name for each kind of storage."""
    if is_remote(address) and not address.startswith("file://"):
        scheme, separator, place = address.partition("://")
        return f"{SCHEMES.get(scheme, scheme)}{separator}{place}"
    folder, _, name = address.removeprefix("file://").rpartition("/")
    return f"{_real_folder(folder).rstrip('/')}/{name}"


@cache
def _real_folder(folder: str) -> str:
    return os.path.realpath(os.path.expanduser(folder or "/"))
