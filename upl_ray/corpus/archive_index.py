"""The index of an archive: the shards of its images, made once for each of its versions and kept in storage.

    <storage>/archives-<address>/commits/<archive and version>.json      its shards
    <storage>/archives-<address>/shards/<commit>-<shard>-<hash>.parquet their rows, of `schema.LISTING`

Archives are indexed in parallel, wherever `Spread` runs them; an unchanged one is never read for it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from upl_ray.corpus import archives
from upl_ray.corpus.find import Form
from upl_ray.corpus.listing import LeftOutRecord
from upl_ray.errors import ConfigError
from upl_ray.storage.step import Step, fingerprint
from upl_ray.storage.store import Store, open_filesystem

INDEX = "archives"  # name of the step
# Applies a function to each of some texts and gives the results in any order: `read_ahead` in threads, or tasks of Ray.
Spread = Callable[[list[str], Callable[[str], str]], Iterable[str]]


@dataclass(frozen=True)
class ArchiveIndex:
    """The index of the archives at one address. It travels to the tasks that read them."""

    step: Step
    root: str  # address that their names are relative to
    form: Form  # tar or parquet
    prefix: str  # in front of every image id
    suffix: str  # of the images that count in tar archives; empty: all
    shard_size: int

    @classmethod
    def of(cls, store: Store, root: str, form: Form, prefix: str, suffix: str, shard_size: int) -> ArchiveIndex:
        """The index of an address in the storage of a run."""
        step = Step.of(store, INDEX, version=5, inputs={"root": root, "prefix": prefix, "suffix": suffix})
        return cls(step, root, form, prefix, suffix, shard_size)

    def finish(
        self, versions: dict[str, str], done: Set[str], spread: Spread
    ) -> Iterator[tuple[str, list[dict[str, Any]], list[LeftOutRecord]]]:
        """(archive, records of its shards, files left out) of archives of these versions; reads those without a commit.

        Args:
            versions: archive -> version.
            done: the commits that are there.
            spread: where the others are read.

        Raises:
            ConfigError: one of them is damaged, or see `archives`.
            OSError: one of them cannot be read now.
        """
        present = [file for file, version in versions.items() if key_of(file, version) in done]
        commits = self.step.read_commits(key_of(file, versions[file]) for file in present)
        yield from ((file, c["shards"], c.get("left_out", [])) for file, c in zip(present, commits, strict=True))
        todo = sorted(versions.keys() - set(present))
        for text in spread([json.dumps([file, versions[file]]) for file in todo], self._index) if todo else ():
            found = json.loads(text)
            if error := found.get("error"):
                raise ConfigError(error)
            yield found["file"], found["shards"], found["left_out"]

    def _index(self, archive: str) -> str:
        """Read an archive, write the listings of its shards, and commit them; runs in tasks."""
        file, version = json.loads(archive)
        fs, root = open_filesystem(self.root)
        path = f"{root}/{file}"
        try:
            found = (
                archives.index_tar(fs, path, self.suffix) if self.form == "tar" else archives.index_parquet(fs, path)
            )
        except ConfigError as error:  # which would come back as text, in the middle of a traceback
            return json.dumps({"file": file, "error": str(error)})
        table = archives.listing_table(self.prefix, file, version, found.rows)
        commit = key_of(file, version)
        shards = [self._shard(table.slice(*part), commit) for part in archives.cut(found.groups, self.shard_size)]
        about = {"shards": shards, "left_out": found.left_out.records()}
        self.step.commit(commit, file=file, version=version, **about)
        return json.dumps({"file": file, **about})

    def _shard(self, listing: pa.Table, commit: str) -> dict[str, Any]:
        digest = shard_digest(self.root, listing)
        name = self.step.store.write_hashed(self.step.path(f"shards/{commit}-{digest}"), listing)
        return {"id": digest, "rows": len(listing), "listing": name}


def key_of(file: str, version: str) -> str:
    """Id of the commit of one version of an archive."""
    return fingerprint([file, version])


def commit_of(listing: str) -> str:
    """File name of the commit that names a listing, from the listing's own."""
    return f"{listing.partition('-')[0]}.json"


def shard_digest(root: str, listing: pa.Table) -> str:
    """Id of a shard, made from its images; with their files, as two manifests may give one id to different ones."""
    rows = list(zip(*(listing[c].to_pylist() for c in ("image_id", "version", "file")), strict=True))
    return hashlib.sha256(repr((root, rows)).encode()).hexdigest()[:16]
