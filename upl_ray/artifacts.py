"""Results as files: content-addressed step folders, commits for each shard, and a manifest written last.

A step's folder is `<storage>/<step>-<fingerprint>/`. It is finished when `manifest.json` exists. Steps that work shard
by shard write parts and one `commits/<shard>.json` that names them; readers open only what commits name, so parts of a
killed run are never seen. Everything is read against its content hash (`integrity`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from upl_ray import integrity
from upl_ray.storage import IO_THREADS as IO_THREADS
from upl_ray.storage import Store as Store
from upl_ray.storage import open_filesystem as open_filesystem
from upl_ray.storage import open_fsspec as open_fsspec
from upl_ray.storage import open_parquet
from upl_ray.storage import table_bytes as table_bytes


def fingerprint(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of canonical JSON.

    Raises:
        TypeError: the value holds something without a stable identity (an object, a path, a set).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Artifact:
    """The result of one step in a store."""

    store: Store
    step: str
    fingerprint: str

    @property
    def folder(self) -> str:
        """Folder name inside the store."""
        return f"{self.step}-{self.fingerprint}"

    @property
    def uri(self) -> str:
        """Full URI of the folder."""
        return self.store.join(self.folder)

    def name(self, name: str) -> str:
        """Name in the store of a file of this artifact."""
        return f"{self.folder}/{name}"

    def manifest(self) -> dict[str, Any] | None:
        """What the finished step says about itself, or None while it is unfinished.

        Raises:
            Damaged: it is not what was written, as all that reads commits and files does.
        """
        try:
            return self.read_sealed("manifest.json")
        except FileNotFoundError:
            return None

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Write the manifest, which declares the step done. `facts` are JSON values for readers and reports."""
        manifest = {"step": self.step, "fingerprint": self.fingerprint, **facts, "provenance": provenance()}
        return self.write_sealed("manifest.json", manifest)

    def write_sealed(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Write JSON that holds its own place and hash; returns it as it will be read."""
        return self.store.write_sealed(self.name(name), value)

    def read_sealed(self, name: str) -> dict[str, Any]:
        """JSON that `write_sealed` wrote."""
        return self.store.read_sealed(self.name(name))

    def write_file(self, name: str, content: pa.Table | bytes) -> dict[str, str]:
        """Write a table or bytes; returns its entry for `files` of the manifest."""
        data = content if isinstance(content, bytes) else table_bytes(content)
        self.store.write(self.name(name), data)
        return {name: integrity.sha256(data)}

    def read_file(self, name: str) -> bytes:
        """A file that the manifest names in `files`."""
        expected = (self.manifest() or {}).get("files", {}).get(name, "")
        return integrity.check(self.store.read_named(self.name(name)), expected, self.store.join(self.name(name)))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A table that the manifest names in `files`."""
        return open_parquet(pa.BufferReader(self.read_file(name)), self.store.join(self.name(name))).read(columns)

    def committed(self) -> set[str]:
        """Ids of the shards whose work is done."""
        names = self.store.names(self.name("commits"))
        return {n.removesuffix(".json") for n in names if n.endswith(".json")}

    def commit(self, shard: str, **facts: Any) -> None:
        """Declare a shard done; `parts` in `facts` names its files."""
        self.write_sealed(f"commits/{shard}.json", facts)

    def read_commit(self, shard: str) -> dict[str, Any]:
        """What was committed for a shard."""
        return self.read_sealed(f"commits/{shard}.json")

    def read_commits(self, shards: Iterable[str]) -> list[dict[str, Any]]:
        """Several commits, in the given order."""
        with ThreadPoolExecutor(IO_THREADS) as pool:
            return list(pool.map(self.read_commit, shards))

    def write_part(self, shard: str, table: pa.Table) -> str:
        """Write rows of a shard under a name made from its content; returns the name for the commit."""
        return self.store.write_hashed(self.name(f"parts/{shard}"), table).removeprefix(f"{self.folder}/")

    def read_part(self, part: str, columns: list[str] | None = None) -> pa.Table:
        """The rows of a part by its name in the commit."""
        return self.store.read_hashed(self.name(part), columns)

    def read_shard(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """All committed rows of a shard."""
        parts = self.read_commit(shard)["parts"]
        return pa.concat_tables([self.read_part(p, columns) for p in parts])


def provenance() -> dict[str, Any]:
    """Library versions, command line and time: recorded for people, never part of a fingerprint."""
    found = versions()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": found.pop("python"),
        "versions": found,
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide about results; None where a package is not installed."""
    packages = ("upl-ray", "ray", "torch", "open_clip_torch", "pyarrow", "numpy", "pillow")
    return {"python": platform.python_version(), **{p: _version(p) for p in packages}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # run from a checkout that was not installed, as `ray job submit --working-dir` does
