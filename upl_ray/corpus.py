"""A corpus as append-only shards: found, remembered, and brought up to date.

A shard is an immutable listing of (image_id, version) under an id made from its content. A later run keeps the shards
it knows, puts new and changed images into new shards, and notes which rows of old shards are gone, so work that was
done for a shard stays valid for ever. What is gone stays gone: the shard may have been embedded while the image was a
missing file, so an image that comes back is listed in a new shard, whose id was never in use. So is one that was listed
and away when it was read, once more.
An archive's shards live and go with it: an unchanged one is not read again.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa

from upl_ray import archives, schema, sources
from upl_ray.artifacts import IO_THREADS, Artifact, Store, fingerprint, open_filesystem
from upl_ray.config import ConfigError, Source
from upl_ray.demo import locate
from upl_ray.manifests import Named, names_images, read_manifest
from upl_ray.sources import Found
from upl_ray.storage import absolute

VERSION = 3  # raise when the same source lists other images
MISSING_FOLDER = "missing"


@dataclass(frozen=True)
class Shard:
    """Some images of a corpus, in a fixed order."""

    id: str
    rows: int
    root: str = ""  # what the files of its listing are relative to
    listing: str = ""  # name of its listing in the store
    removed: frozenset[str] = field(default_factory=frozenset)  # ids whose file was gone or changed since; only grows
    archive: str = ""  # the archive that all of its images lie in, relative to the root; empty for single files
    version: str = ""  # the archive's

    @property
    def state(self) -> str:
        """Identity of the rows that still exist: what is derived from features is committed under this name."""
        return f"{self.id}-{fingerprint(sorted(self.removed))}" if self.removed else self.id

    def record(self) -> dict[str, Any]:
        """The shard in the corpus' manifest."""
        return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in vars(self).items()}


@dataclass(frozen=True)
class Corpus:
    """The images that exist now."""

    artifact: Artifact
    roots: tuple[str, ...]
    shards: tuple[Shard, ...]
    added: int = 0  # images that this listing has put into new shards

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(s.rows - len(s.removed) for s in self.shards)

    @property
    def digest(self) -> str:
        """Identity of the present set of images and versions."""
        return fingerprint(sorted(s.state for s in self.shards))

    @property
    def labels_digest(self) -> str:
        """Identity of that, and of what the source says about true labels."""
        return fingerprint(sorted([s.state, s.listing] for s in self.shards))

    def note_missing(self, shard: Shard, images: Set[str]) -> None:
        """Remember images of a shard that were away when they were read: the next listing lists them once more.

        If all of them were, that stands: they were not there in the next attempt either, or a manifest names them in
        vain. A local folder that is away is an error instead, see `read_images`.
        """
        if not shard.archive and images and len(images) < shard.rows - len(shard.removed):
            name = f"{MISSING_FOLDER}/{shard.id}-{fingerprint(sorted(images))}.json"
            self.artifact.write_sealed(name, {"images": sorted(images)})

    @property
    def name(self) -> str:
        """The addresses, for people."""
        return ", ".join(self.roots)

    def listing(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        """Rows of `schema.LISTING` in their fixed order, removed ones included."""
        return self.artifact.store.read_hashed(shard.listing, columns)

    def labels(self, shard: Shard) -> dict[str, str | None]:
        """What the source says about the true class of each image; for scores only."""
        table = self.listing(shard, ["image_id", "label"])
        return dict(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True))


def list_corpus(store: Store, source: Source, shard_size: int) -> Corpus:
    """Find a source's images and bring its shards up to date.

    Raises:
        ConfigError: see `sources.find`, `archives` and `manifests`.
    """
    try:
        roots = tuple(locate.images(uri) for uri in source.uris)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    artifact = Artifact(store, "corpus", fingerprint({"version": VERSION, "roots": roots}))
    before = artifact.manifest() or {"shards": {}}
    records, retired = before["shards"], set(before.get("retired", []))
    shards: dict[str, list[Shard]] = {}
    missing = _missing(artifact) if records else {}  # the first time there are none
    added = 0
    for root in roots:
        known = [shard_of(r) for r in records.get(root, [])]
        used = frozenset(retired | {s.id for s in known})
        listing = _Listing(artifact, root, f"{root}/" if len(roots) > 1 else "", shard_size, used, missing)
        shards[root], new = listing.update(known, source)
        retired |= {s.id for s in known if not s.archive} - {s.id for s in shards[root]}
        added += new
    corpus = Corpus(artifact, roots, tuple(s for root in roots for s in shards[root]), added)
    new_records = {root: [s.record() for s in of_root] for root, of_root in shards.items()}
    if new_records != records:
        artifact.finish(roots=list(roots), images=corpus.images, shards=new_records, retired=sorted(retired))
    return corpus


def _missing(artifact: Artifact) -> dict[str, set[str]]:
    """Shard id -> images that were away when they were read."""
    found: dict[str, set[str]] = defaultdict(set)
    names = [f"{MISSING_FOLDER}/{n}" for n in artifact.store.names(artifact.name(MISSING_FOLDER))]
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for name, note in zip(names, pool.map(artifact.read_sealed, names), strict=True):
            found[name.rpartition("/")[2].partition("-")[0]].update(note["images"])
    return found


def read_corpus(artifact: Artifact) -> Corpus:
    """A corpus as it was listed last; the images themselves are not looked for.

    Raises:
        FileNotFoundError: it was never listed.
    """
    manifest = artifact.read_sealed("manifest.json")
    roots = tuple(manifest["roots"])
    return Corpus(artifact, roots, tuple(shard_of(r) for root in roots for r in manifest["shards"][root]))


def shard_of(record: dict[str, Any]) -> Shard:
    """The shard that a record describes."""
    return Shard(**{**record, "removed": frozenset(record["removed"])})


@dataclass(frozen=True)
class _Listing:
    """Brings the shards of one address up to date."""

    artifact: Artifact
    address: str
    prefix: str  # in front of every image id
    shard_size: int
    used: frozenset[str]  # ids of shards of single files that were there: something may have been made of them
    missing: Mapping[str, Set[str]]  # shard id -> images that are to be listed once more

    def update(self, known: list[Shard], source: Source) -> tuple[list[Shard], int]:
        """The shards as they are now, and how many images are new."""
        found = sources.find(self.address)
        manifests = found.form == "manifest" or (found.form == "parquet" and names_images(found))
        _check_labels(source, self.address, "manifest" if manifests else found.form)
        if manifests:
            named = self._read_manifests(found, source.roots)
            versions = {self.prefix + i: n.version for i, n in named.items()}
            return self._images(known, found.root, versions, lambda i: named[i[len(self.prefix) :]], True)
        if found.form == "images":
            versions = {self.prefix + file: version for file, version in found.files.items()}
            return self._images(known, found.root, versions, self._own_file)
        return self._archives(known, found)

    def _own_file(self, image_id: str) -> Named:
        file = image_id[len(self.prefix) :]
        return Named(file, "", sources.sub_folder(file))

    def _images(
        self, known: list[Shard], root: str, new: dict[str, str], describe: Callable[[str], Named], named: bool = False
    ) -> tuple[list[Shard], int]:
        """Shards of single files, or of those that are `named`; `new` (image id -> version) is used up."""
        shards, again = [], []
        with ThreadPoolExecutor(IO_THREADS) as pool:
            columns = ["image_id", "version", "label", "file"] if named else ["image_id", "version"]
            read = partial(self.artifact.store.read_hashed, columns=columns)
            for shard, listing in zip(known, pool.map(read, [s.listing for s in known]), strict=True):
                removed, missing = set(shard.removed), self.missing.get(shard.id, frozenset())
                pairs = zip(listing["image_id"].to_pylist(), listing["version"].to_pylist(), strict=True)
                for image_id, version in pairs:
                    if image_id in removed:
                        continue
                    if new.get(image_id) != version:  # gone or changed
                        removed.add(image_id)
                    elif image_id in missing:
                        removed.add(image_id)
                        again.append(image_id)
                    else:
                        del new[image_id]
                if len(removed) < shard.rows:
                    name = self._refreshed(shard, listing, removed, describe) if named else shard.listing
                    shards.append(replace(shard, removed=frozenset(removed), listing=name))
        # What is listed once more is kept apart: if all of it is missing again, that stands.
        for added in (sorted(new.keys() - set(again)), sorted(again)):
            for first in range(0, len(added), self.shard_size):
                ids = added[first : first + self.shard_size]
                shards.append(self._write(root, _table(ids, [new[i] for i in ids], [describe(i) for i in ids]), named))
        return shards, len(new)

    def _refreshed(self, shard: Shard, listing: pa.Table, removed: Set[str], describe: Callable[[str], Named]) -> str:
        """The listing of a shard with the labels and places that the source gives now; its id stays, and all work."""
        ids, versions, labels, files = (listing[c].to_pylist() for c in ("image_id", "version", "label", "file"))
        before = list(map(Named, files, versions, labels))
        now = [old if i in removed else describe(i) for i, old in zip(ids, before, strict=True)]
        if now == before:
            return shard.listing
        name = self.artifact.name(f"shards/{shard.id}")
        return self.artifact.store.write_hashed(name, _table(ids, versions, now))

    def _archives(self, known: list[Shard], found: Found) -> tuple[list[Shard], int]:
        """Shards of archives: those of unchanged ones stay, new and changed ones are read."""
        shards = [s for s in known if found.files.get(s.archive) == s.version]
        fresh = sorted(found.files.keys() - {s.archive for s in shards})
        fs, root = open_filesystem(found.root)
        index = archives.index_tar if found.form == "tar" else archives.index_parquet
        added = 0
        with ThreadPoolExecutor(IO_THREADS) as pool:
            for file, rows in zip(fresh, pool.map(lambda f: index(fs, f"{root}/{f}"), fresh), strict=True):
                table = archives.listing_table(self.prefix, file, found.files[file], rows)
                for first in range(0, len(table), self.shard_size):
                    part = table.slice(first, self.shard_size)
                    shards.append(self._write(found.root, part, archive=file, version=found.files[file]))
                added += len(table)
        if not shards:
            raise ConfigError(f"The archives under {self.address!r} hold no image.")
        return shards, added

    def _write(self, root: str, table: pa.Table, named: bool = False, archive: str = "", version: str = "") -> Shard:
        # Two manifests may give the same ids and versions to other files. Elsewhere the id says which file it is.
        identity = ["image_id", "version", "file"] if named else ["image_id", "version"]
        rows = list(zip(*(table[c].to_pylist() for c in identity), strict=True))
        digest = hashlib.sha256(repr((root, rows)).encode()).hexdigest()[:16]
        while digest in self.used and not archive:
            digest = hashlib.sha256(digest.encode()).hexdigest()[:16]
        name = self.artifact.store.write_hashed(self.artifact.name(f"shards/{digest}"), table)
        return Shard(digest, len(rows), root, name, archive=archive, version=version)

    def _read_manifests(self, found: Found, roots: tuple[str, ...]) -> dict[str, Named]:
        fs, root = open_filesystem(found.root)
        try:
            allowed = tuple(absolute(r) for r in roots)
        except ConfigError as error:
            raise ConfigError(f"roots: {error}") from None
        named: dict[str, Named] = {}
        for file in sorted(found.files):
            more = read_manifest(fs, f"{root}/{file}", found.root, allowed)
            doubled = next((i for i in more if i in named), None)
            if doubled is not None:
                raise ConfigError(f"Two manifests under {found.root!r} name {doubled!r}; remove one of them.")
            named |= more
        return named


def _table(ids: list[str], versions: list[str], about: list[Named]) -> pa.Table:
    """Rows of `schema.LISTING` for images in files of their own."""
    nothing = [None] * len(ids)
    columns = [ids, versions, [a.label for a in about], [a.file for a in about], nothing, nothing]
    return pa.table(columns, schema=schema.LISTING)


def _check_labels(source: Source, address: str, form: sources.Form) -> None:
    wanted = {"images": "folders", "manifest": "column", "parquet": "column"}.get(form, source.labels)
    if source.labels not in ("none", wanted):
        raise ConfigError(f"labels {source.labels!r} does not fit {address!r} ({form}); use `{wanted}` or `none`.")
