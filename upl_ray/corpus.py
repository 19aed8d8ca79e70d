"""Sources of images as append-only shards: found, remembered, and read.

A shard is an immutable list of (image_id, version) under an id made from its content. A later run keeps the shards it
knows, puts new and changed files into new shards, and notes which rows of old shards are gone, so work that was done
for a shard stays valid for ever.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs

from upl_ray import schema
from upl_ray.artifacts import IO_THREADS, Artifact, Store, fingerprint, open_filesystem
from upl_ray.config import ConfigError, Source
from upl_ray.demo import locate
from upl_ray.images import EXTENSIONS

VERSION = 1  # raise when the same source lists other images


@dataclass(frozen=True)
class Shard:
    """Some images of a corpus, in a fixed order."""

    id: str
    rows: int
    removed: frozenset[str] = field(default_factory=frozenset)  # ids whose file is gone or has changed since

    @property
    def state(self) -> str:
        """Identity of the rows that still exist: what is derived from features is committed under this name."""
        return f"{self.id}-{fingerprint(sorted(self.removed))}" if self.removed else self.id


@dataclass(frozen=True)
class Corpus:
    """The images that exist now."""

    artifact: Artifact
    root: str
    shards: tuple[Shard, ...]
    added: int = 0  # images that this listing found for the first time

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(s.rows - len(s.removed) for s in self.shards)

    @property
    def digest(self) -> str:
        """Identity of the present set of images and versions."""
        return fingerprint(sorted(s.state for s in self.shards))

    def listing(self, shard: Shard) -> list[str]:
        """Image ids of a shard, in its fixed order, removed ones included."""
        return read_listing(self.artifact, shard.id)["image_id"].to_pylist()  # type: ignore[no-any-return]


def find_images(uri: str) -> dict[str, str]:
    """All images under a folder or prefix: image_id (path below it) -> version (size and modification time).

    Raises:
        ConfigError: the folder does not exist, cannot be reached or holds no image.
    """
    try:
        fs, root = open_filesystem(uri)
        infos = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"The images under {uri!r} cannot be listed ({error}); check the address and the access."
        ) from None
    found = {}
    for info in infos:
        image_id = info.path[len(root) :].lstrip("/")
        hidden = any(part.startswith(".") for part in image_id.split("/"))
        if info.type == pafs.FileType.File and image_id.lower().endswith(EXTENSIONS) and not hidden:
            found[image_id] = f"{info.size}-{info.mtime_ns or 0}"
    if not found:
        raise ConfigError(f"No image lies under {uri!r}; files ending in {' '.join(EXTENSIONS)} are looked for.")
    return found


def list_corpus(store: Store, source: Source, shard_size: int) -> Corpus:
    """Find a source's images and bring its shards up to date.

    Raises:
        ConfigError: see `find_images`.
    """
    try:
        root = locate.images(source.uri)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    artifact = Artifact(store, "corpus", fingerprint({"version": VERSION, "root": root}))
    found = find_images(root)
    manifest = artifact.manifest() or {"shards": []}
    new, shards = dict(found), []
    for known in manifest["shards"]:
        listing = read_listing(artifact, known["id"])
        pairs = zip(listing["image_id"].to_pylist(), listing["version"].to_pylist(), strict=True)
        removed = set()
        for image_id, version in pairs:
            if new.get(image_id) == version:
                del new[image_id]
            else:  # gone, changed, or listed again by a later shard
                removed.add(image_id)
        if len(removed) < known["rows"]:
            shards.append(Shard(known["id"], known["rows"], frozenset(removed)))
    added = sorted(new.items())
    for first in range(0, len(added), shard_size):
        shards.append(_new_shard(artifact, root, added[first : first + shard_size]))
    corpus = Corpus(artifact, root, tuple(shards), len(added))
    known = [{"id": s.id, "rows": s.rows, "removed": sorted(s.removed)} for s in shards]
    if known != manifest["shards"]:
        artifact.finish(root=root, images=corpus.images, shards=known)
    return corpus


def _new_shard(artifact: Artifact, root: str, rows: list[tuple[str, str]]) -> Shard:
    digest = hashlib.sha256(repr((root, rows)).encode()).hexdigest()[:16]
    ids, versions = zip(*rows, strict=True)
    table = pa.table({"image_id": pa.array(ids), "version": pa.array(versions)}, schema=schema.LISTING)
    artifact.store.write_table(artifact.name(f"shards/{digest}.parquet"), table)
    return Shard(digest, len(rows))


def read_listing(artifact: Artifact, shard: str) -> pa.Table:
    """A shard's table of `schema.LISTING`."""
    return artifact.store.read_table(artifact.name(f"shards/{shard}.parquet"))


def read_images(root: str, image_ids: list[str]) -> list[bytes | str]:
    """The files' bytes, in order, read concurrently; a reason instead where a file is missing or not permitted.

    Raises:
        OSError: the storage does not answer; that says nothing about the image, so the task fails and is repeated.
        RuntimeError: none of the files is there, so it is the folder that is missing on this machine.
    """
    fs, folder = open_filesystem(root)

    def read(image_id: str) -> bytes | str:
        try:
            with fs.open_input_stream(f"{folder}/{image_id}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return "missing file"
        except PermissionError:
            return "no permission to read the file"

    with ThreadPoolExecutor(IO_THREADS) as pool:
        found = list(pool.map(read, image_ids))
    if found and all(f == "missing file" for f in found):
        raise RuntimeError(
            f"None of {len(found)} listed images is found under {root} on this machine, for example {image_ids[0]}; "
            f"every node must reach the same folder."
        )
    return found
