"""`--repair`: every file that a run stands on is checked, and what is damaged is taken away, so that it is made anew.

Taking away is forgetting: without its commit a shard's work is open again, without its manifest a step is unfinished,
and the job that follows does both as if they had never been done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from upl_ray import integrity
from upl_ray.artifacts import Artifact
from upl_ray.storage import IO_THREADS, Store

log = logging.getLogger(__name__)

# Steps whose manifest says that all of their files are there; those of others grow with their commits.
CLOSED = ("views", "members", "predictions")


def repair(store: Store) -> list[str]:
    """Check all artifacts of a storage, and take away what is damaged.

    Everything is read once, on this machine. Nothing else may work on the storage meanwhile.

    Returns:
        Names of the damaged files.
    """
    damaged: list[str] = []
    files = 0
    for folder in _folders(store):
        step, _, digest = folder.rpartition("-")
        artifact = Artifact(store, step, digest)
        names = store.names_below(folder)
        files += len(names)
        found = _damaged(artifact, names)
        for name in found:
            log.warning("%-12s %s is damaged, and will be made anew", "repair", store.join(artifact.name(name)))
        damaged += [artifact.name(name) for name in found]
    log.info("%-12s %d files checked, %d damaged", "repair", files, len(damaged))
    return damaged


def _folders(store: Store) -> Iterator[str]:
    """Folders of artifacts: `step-fingerprint`."""
    for name in store.folders():
        _, dash, digest = name.rpartition("-")
        if dash and len(digest) == 12 and set(digest) <= set("0123456789abcdef"):
            yield name


def _damaged(artifact: Artifact, names: list[str]) -> list[str]:
    """Damaged files of an artifact, which are taken away with all that says they are there."""
    commits = [n for n in names if n.startswith("commits/")]
    alone = [n for n in names if n.startswith(("checkpoints/", "prompts/", "dropped/", "missing/"))]
    bad = _bad_files(artifact, alone, _check_alone) | _bad_files(artifact, commits, _check_commit)
    if "manifest.json" in names:
        closed = artifact.step in CLOSED and any(n.startswith(("commits/", "prompts/")) for n in bad)
        of_manifest = _bad_files(artifact, ["manifest.json"], _check_manifest)
        bad |= of_manifest or ({"manifest.json": []} if closed else {})
    for name in bad:
        artifact.store.delete(artifact.name(name))
    if artifact.step == "corpus":
        bad |= {"": _forget_shards(artifact)}
    return list(dict.fromkeys(file for files in bad.values() for file in files))


def _bad_files(
    artifact: Artifact, names: list[str], check: Callable[[Artifact, str], list[str]]
) -> dict[str, list[str]]:
    """What is to be taken away, and the damaged files for the sake of which it is."""
    with ThreadPoolExecutor(IO_THREADS) as pool:
        found = zip(names, pool.map(partial(check, artifact), names), strict=True)
        return {name: bad for name, bad in found if bad}


def _check_alone(artifact: Artifact, name: str) -> list[str]:
    """A file that holds its own place and hash."""
    place = artifact.name(name)
    opened = integrity.open_json if name.endswith(".json") else integrity.open_tensors
    return [] if _fine(partial(opened, artifact.store.read(place), place, place)) else [name]


def _check_commit(artifact: Artifact, name: str) -> list[str]:
    """A commit and the parts that it names."""
    if not _fine(partial(artifact.read_sealed, name)):
        return [name]
    parts: list[str] = artifact.read_sealed(name)["parts"]
    return [p for p in parts if not _fine(partial(artifact.store.check_hashed, artifact.name(p)))]


def _check_manifest(artifact: Artifact, name: str) -> list[str]:
    """A manifest and the files that it names."""
    if not _fine(partial(artifact.read_sealed, name)):
        return [name]
    files = artifact.read_sealed(name).get("files", {})
    return [file for file in files if not _fine(partial(artifact.read_file, file))]


def _forget_shards(corpus: Artifact) -> list[str]:
    """Drop the shards whose listing is damaged from a corpus: their images are listed anew."""
    manifest = corpus.manifest()
    if manifest is None:
        return []
    lost: list[str] = []
    for root, shards in manifest["shards"].items():
        names = [s["listing"] for s in shards]
        bad = [n for n in names if not _fine(partial(corpus.store.check_hashed, n))]
        manifest["shards"][root] = [s for s in shards if s["listing"] not in bad]
        lost += bad
    if lost:
        corpus.write_sealed("manifest.json", manifest)
    return [n.removeprefix(f"{corpus.folder}/") for n in lost]


def _fine(check: Callable[[], Any]) -> bool:
    try:
        check()
    except integrity.Damaged:
        return False
    return True
