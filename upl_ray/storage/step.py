"""A step of a run: its identity, its folder in storage, and the files in it.

The folder is `<storage>/<name>-<fingerprint>/`. A step is finished when `manifest.json` exists: it is written last.
Steps that work shard by shard write parts and one `commits/<shard>.json` that names them. Readers open only what is
named by a commit, so they never see parts of a killed run. Parts and files are checked against their hash on reading.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from upl_ray.errors import JobError
from upl_ray.storage.store import Store, damaged, open_parquet, read_ahead, sha256, table_bytes

MANIFEST = "manifest.json"


def fingerprint(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of canonical JSON.

    Raises:
        TypeError: the value holds something without a stable identity (an object, a path, a set).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Step:
    """One step in a store; `Step.of` makes it from its identity, `open_step` from its folder."""

    store: Store
    name: str
    fingerprint: str

    @classmethod
    def of(
        cls, store: Store, name: str, *, version: int, inputs: Mapping[str, Any], needs: Iterable[Step] = ()
    ) -> Step:
        """The step that these inputs make.

        Args:
            store: where its folder lies.
            name: what it is called.
            version: raised by its module when the same inputs give another result.
            inputs: JSON values that decide about the result; nothing about compute.
            needs: steps whose results it reads.
        """
        identity = {"version": version, "inputs": inputs, "needs": [s.fingerprint for s in needs]}
        return cls(store, name, fingerprint(identity))

    @property
    def folder(self) -> str:
        """Folder name inside the store."""
        return f"{self.name}-{self.fingerprint}"

    @property
    def uri(self) -> str:
        """Full URI of the folder."""
        return self.store.join(self.folder)

    def path(self, file: str) -> str:
        """Name in the store of a file of this step."""
        return f"{self.folder}/{file}"

    # The manifest: what the finished step records about itself.

    @property
    def finished(self) -> bool:
        """True if the manifest is in storage."""
        return self.find_manifest() is not None

    def find_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None while the step is unfinished.

        Raises:
            Damaged: it is no JSON object, or not this step's.
        """
        try:
            found = self.read_json(MANIFEST)
        except FileNotFoundError:
            return None
        if found.get("fingerprint") != self.fingerprint:
            raise damaged(self.store.join(self.path(MANIFEST)))
        return found

    def manifest(self) -> dict[str, Any]:
        """The manifest of a finished step.

        Raises:
            JobError: the step is unfinished.
            Damaged: the manifest is no JSON object.
        """
        found = self.find_manifest()
        if found is None:
            raise JobError(f"The step {self.uri} is not finished; run the job again, which makes it.")
        return found

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Write the manifest, which declares the step finished. `facts` are JSON values for readers and reports."""
        about = {"step": self.name, "fingerprint": self.fingerprint, **facts, "provenance": provenance()}
        return self.write_json(MANIFEST, about)

    def forget_lost(self) -> list[str]:
        """Take back what the step declares done where a file of it is gone, so that it is made again; the files' names.

        Only names are looked at, in one listing, and of a shard with several parts, whether there is any: commits may
        be very many. The rest is checked when it is read. What is declared was written before, and names are listed in
        their order, so parts after commits; they are once more before one is taken back: another run may have made it.

        Raises:
            Damaged: the declaration may not be deleted, as of a role that may only write; names it.
        """
        files = (self.find_manifest() or {}).get("files", {})
        there = self._names()
        if not files.keys() <= there and (lost := sorted(files.keys() - self._names())):
            self._take_back(MANIFEST, lost[0])
        else:
            lost = []
        declared = {n.removeprefix("commits/").removesuffix(".json") for n in there if n.startswith("commits/")}
        suspects = sorted(declared - _shards_with_parts(there))
        named = dict(zip(suspects, read_ahead(suspects, self._parts_of), strict=True))
        again = _shards_with_parts(self._names()) if any(named.values()) else set()
        for shard, parts in named.items():
            if parts and shard not in again:
                self._take_back(f"commits/{shard}.json", parts[0])
                lost += parts
        return lost

    def _names(self) -> set[str]:
        return set(self.store.names_below(self.folder))

    def _take_back(self, declaration: str, lost: str) -> None:
        try:
            self.store.delete(self.path(declaration))
        except OSError:
            raise damaged(self.store.join(self.path(lost)), self.store.join(self.path(declaration))) from None

    def _parts_of(self, shard: str) -> list[str]:
        try:
            return list(self.read_commit(shard).get("parts", []))
        except FileNotFoundError:  # another run drops features
            return []

    # Single files. Those that the manifest names in `files` are checked against their hash.

    def write_json(self, file: str, value: dict[str, Any]) -> dict[str, Any]:
        """Write a JSON object; returns it as it will be read."""
        return dict(self.store.write_json(self.path(file), value))

    def read_json(self, file: str) -> dict[str, Any]:
        """A JSON object; raises as `Store.read_json`."""
        return self.store.read_json(self.path(file))

    def write_file(self, file: str, content: pa.Table | bytes) -> dict[str, str]:
        """Write a table or bytes; returns its entry for `files` of the manifest."""
        data = content if isinstance(content, bytes) else table_bytes(content)
        self.store.write(self.path(file), data)
        return {file: sha256(data)}

    def read_file(self, file: str) -> bytes:
        """A file that the manifest names in `files`.

        Raises:
            Damaged: it is not what was written, gone, or not named.
        """
        expected = (self.find_manifest() or {}).get("files", {}).get(file, "")
        return self.store.read_checked(self.path(file), expected, self.path(MANIFEST))

    def read_table(self, file: str, columns: list[str] | None = None) -> pa.Table:
        """A table that the manifest names in `files`."""
        return open_parquet(pa.BufferReader(self.read_file(file)), self.store.join(self.path(file))).read(columns)

    # Shards: parts with rows, and commits that name them.

    def committed(self) -> set[str]:
        """Ids of the shards whose work is done."""
        names = self.store.names(self.path("commits"))
        return {n.removesuffix(".json") for n in names if n.endswith(".json")}

    def commit(self, shard: str, **facts: Any) -> None:
        """Declare a shard done; `parts` in `facts` names its files."""
        self.write_json(f"commits/{shard}.json", facts)

    def read_commit(self, shard: str) -> dict[str, Any]:
        """What was committed for a shard."""
        return self.read_json(f"commits/{shard}.json")

    def read_commits(self, shards: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Several commits in the given order, read ahead in bounded memory."""
        return read_ahead(shards, self.read_commit)

    def write_part(self, shard: str, table: pa.Table) -> str:
        """Write rows of a shard under a name made from its content; returns the name for the commit."""
        return self.store.write_hashed(self.path(f"parts/{shard}"), table).removeprefix(f"{self.folder}/")

    def read_part(self, part: str, columns: list[str] | None = None, commit: str = "") -> pa.Table:
        """The rows of a part that a commit names.

        Raises:
            Damaged: it is not what was written, or gone; names the commit to delete.
        """
        remedy = self.path(f"commits/{commit}.json") if commit else ""
        return self.store.read_hashed(self.path(part), columns, remedy)

    def read_shard(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """All committed rows of a shard.

        Raises:
            Damaged: see `read_part`.
        """
        parts = self.read_commit(shard)["parts"]
        return pa.concat_tables([self.read_part(p, columns, shard) for p in parts])


def _shards_with_parts(names: Iterable[str]) -> set[str]:
    return {n.removeprefix("parts/").rpartition("-")[0] for n in names if n.startswith("parts/")}


def open_step(store: Store, folder: str) -> Step:
    """The step whose folder has this name, `<name>-<fingerprint>`."""
    name, _, digest = folder.rpartition("-")
    return Step(store, name, digest)


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
