"""A corpus as append-only shards: its images are listed, remembered, and brought up to date by later runs.

A shard is an immutable listing of (image id, version) under an id made from its content. A later listing keeps the
shards it knows and puts new and changed images into new ones, so work that was done for a shard stays valid. Of an
image or shard that was listed once:

* removed: an image that was deleted or changed since, or is listed again elsewhere. Its row stays in the shard's
  listing, and its id in `Shard.removed`, for good: if the image comes back, it is listed in a new shard, because the
  old one may have been embedded while the file was not there.
* missing: an image that was listed, but not found when it was read (`Corpus.note_missing`). The next listing that finds
  it removes it from its shard and lists it in a new one, once.
* retired: the id of a shard all of whose images are removed. It is not given to a new shard, though one with the same
  content may come: features of the old one may be in storage.

Shards of an archive hold images of that archive only. They are kept while it is unchanged, without reading it, and
dropped when it is changed or deleted; none of their images is ever removed alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import pyarrow as pa

from upl_ray.config.settings import Source
from upl_ray.corpus.archive_index import INDEX, ArchiveIndex, Spread, commit_of, key_of, shard_digest
from upl_ray.corpus.find import SUFFIXES, Form, Found, ImageFile, find, sub_folder
from upl_ray.corpus.listing import LeftOut, LeftOutRecord
from upl_ray.corpus.manifests import names_images, read_manifests
from upl_ray.corpus.masks import warn_of_masks
from upl_ray.demo import locate
from upl_ray.errors import ConfigError
from upl_ray.storage import schema
from upl_ray.storage.step import MANIFEST, Step, fingerprint
from upl_ray.storage.store import Store, read_ahead

MISSING_FOLDER = "missing"
REJECTED = "rejected.parquet"


@dataclass(frozen=True)
class Shard:
    """Some images of a corpus, in a fixed order."""

    id: str
    rows: int  # of its listing, removed images included
    root: str = ""  # address that the files of its listing are relative to
    listing: str = ""  # name of its listing in the store
    removed: frozenset[str] = field(default_factory=frozenset)  # ids; only grows
    archive: str = ""  # the archive of all its images, relative to the root; empty for single files
    version: str = ""  # of the archive
    left_out: tuple[LeftOutRecord, ...] = ()  # of the archive, in its first shard

    @property
    def in_row_groups(self) -> bool:
        """True for a part of a Parquet file: it is read in one go, from its first row group to its last."""
        return self.archive.lower().endswith(SUFFIXES["parquet"])

    @property
    def commit(self) -> str:
        """Of a shard of an archive: the commit of its index."""
        return key_of(self.archive, self.version)

    @property
    def state(self) -> str:
        """Name of the shard without its removed images; labels and predictions are committed under it."""
        return f"{self.id}-{fingerprint(sorted(self.removed))}" if self.removed else self.id

    def record(self) -> dict[str, Any]:
        """The shard as JSON; `shard_of` reads it."""
        return {**vars(self), "removed": sorted(self.removed), "left_out": [list(x) for x in self.left_out]}


@dataclass(frozen=True)
class Corpus:
    """The images that exist now."""

    step: Step
    roots: tuple[str, ...]
    shards: tuple[Shard, ...]
    added: int = 0  # images in shards that are new in this listing
    left_out: LeftOut = field(default_factory=LeftOut)  # of this listing

    @property
    def name(self) -> str:
        """The addresses, for log lines and errors."""
        return ", ".join(self.roots)

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(s.rows - len(s.removed) for s in self.shards)

    @property
    def digest(self) -> str:
        """Identity of the present images and their versions."""
        return fingerprint(sorted(s.state for s in self.shards))

    @property
    def labels_digest(self) -> str:
        """Identity of the present images, their versions and the labels that the source gives."""
        return fingerprint(sorted([s.state, s.listing] for s in self.shards))

    def listing(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        """Rows of `schema.LISTING` in their fixed order, those of removed images included."""
        return read_listing(self.step.store, shard.listing, columns)

    def labels(self, shard: Shard, rule: str = "none") -> dict[str, str | None]:
        """Image id -> label that the source gives by a rule (see `corpus.labels`, and `true_labels_of` for classes).

        Only images in tar archives have labels by both: their own, or else those of folders, by the rule `none`.
        """
        table = self.listing(shard, ["image_id", "label"])
        ids, labels = table["image_id"].to_pylist(), table["label"].to_pylist()
        if shard.archive and not shard.in_row_groups and rule != "column":
            folders = [sub_folder(i.partition(f"{shard.archive}!")[2]) for i in ids]
            labels = (
                folders if rule == "folders" else [f if x is None else x for x, f in zip(labels, folders, strict=True)]
            )
        return dict(zip(ids, labels, strict=True))

    def note_missing(self, shard: Shard, images: Set[str]) -> None:
        """Remember images of a shard of single files that were missing when they were read.

        Nothing is noted if the whole shard is missing: then it is one of images that were missing before, or of names
        in a manifest without a file, and listing them again would never end. `read_images` raises if a whole local
        folder is missing.
        """
        if not shard.archive and images and len(images) < shard.rows - len(shard.removed):
            name = f"{MISSING_FOLDER}/{shard.id}-{fingerprint(sorted(images))}.json"
            self.step.write_json(name, {"images": sorted(images)})


def read_listing(store: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of `schema.LISTING` of a shard.

    Raises:
        Damaged: the listing is not what was written, or gone; names the manifest of the corpus, or the commit of the
            archive's index, to delete.
    """
    folder, _, file = name.partition("/shards/")
    is_archive = folder.startswith(f"{INDEX}-")
    return store.read_hashed(name, columns, f"{folder}/{f'commits/{commit_of(file)}' if is_archive else MANIFEST}")


def list_corpus(store: Store, source: Source, shard_size: int, spread: Spread = read_ahead) -> Corpus:
    """List the images of a source and bring its shards up to date.

    Args:
        store: storage of the run, which keeps the shards.
        source: addresses of the images.
        shard_size: images of a new shard at most.
        spread: where archives are indexed.

    Raises:
        ConfigError: see `find`, `archives` and `manifests`; or the labels do not fit the form.
    """
    try:
        roots = tuple(dict.fromkeys(locate.images(uri) for uri in source.uris))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    chosen = {"suffix": source.suffix} if source.suffix else {}
    step = Step.of(store, "corpus", version=5, inputs={"roots": roots, **chosen})
    before = step.find_manifest() or {"shards": {}, "retired": []}
    records, retired = before["shards"], set(before["retired"])
    missing = _read_missing(step) if records else {}
    shards: dict[str, list[Shard]] = {}
    added, left_out = 0, LeftOut()
    for root in roots:
        known = [shard_of(r) for r in records.get(root, [])]
        taken = frozenset(retired | {s.id for s in known})
        address = _Address(step, root, len(roots) > 1, shard_size, taken, missing, spread)
        shards[root], new = address.list_shards(known, source, left_out)
        retired |= {s.id for s in known if not s.archive} - {s.id for s in shards[root]}
        added += new
    corpus = Corpus(step, roots, tuple(s for root in roots for s in shards[root]), added, left_out)
    new_records = {root: [s.record() for s in of_root] for root, of_root in shards.items()}
    if new_records != records:
        step.finish(roots=list(roots), images=corpus.images, shards=new_records, retired=sorted(retired))
    return corpus


def read_corpus(step: Step) -> Corpus:
    """A corpus as it was listed last; its images are not listed again.

    Raises:
        FileNotFoundError: it was never listed.
    """
    manifest = step.read_json("manifest.json")
    roots = tuple(manifest["roots"])
    return Corpus(step, roots, tuple(shard_of(r) for root in roots for r in manifest["shards"][root]))


def keep_snapshot(corpus: Corpus, rejected: dict[str, str]) -> Step:
    """Store which images a run worked on, so that its report stays the same when the corpus is listed again.

    Args:
        corpus: the images; only names and removed ids of its shards are stored, as listings stay in storage.
        rejected: image id -> reason, of images that could not be read.
    """
    about = {"corpus": corpus.step.fingerprint, "labels": corpus.labels_digest, "rejected": rejected}
    step = Step.of(corpus.step.store, "snapshot", version=2, inputs=about)
    if not step.finished:
        files = step.write_file(REJECTED, rejected_table(rejected))
        shards = [s.record() for s in corpus.shards]
        step.finish(files=files, roots=list(corpus.roots), images=corpus.images, shards=shards)
    return step


def read_snapshot(step: Step) -> Corpus:
    """The corpus of a snapshot.

    Raises:
        FileNotFoundError: there is no such snapshot.
    """
    manifest = step.read_json("manifest.json")
    return Corpus(step, tuple(manifest["roots"]), tuple(map(shard_of, manifest["shards"])))


def rejected_table(rejected: dict[str, str]) -> pa.Table:
    """Rows of `schema.REJECTED` from image id -> reason."""
    rows = [{"image_id": i, "reason": r} for i, r in sorted(rejected.items())]
    return pa.Table.from_pylist(rows, schema=schema.REJECTED)


def shard_of(record: dict[str, Any]) -> Shard:
    """The shard that a record describes."""
    left_out = tuple((reason, name, count) for reason, name, count in record.get("left_out", []))
    return Shard(**{**record, "removed": frozenset(record["removed"]), "left_out": left_out})


@dataclass(frozen=True)
class _Address:
    """One address of a corpus, whose shards are brought up to date."""

    step: Step
    address: str
    one_of_several: bool  # image ids are full addresses
    shard_size: int
    taken: frozenset[str]  # ids of known and retired shards
    missing: Mapping[str, Set[str]]  # shard id -> missing images
    spread: Spread  # where archives are indexed

    def list_shards(self, known: list[Shard], source: Source, left_out: LeftOut) -> tuple[list[Shard], int]:
        """The shards as they are now, and the number of images in new ones; counts what is left out."""
        found = find(self.address, self.step.store.uri)
        left_out.merge(found.left_out)
        form: Form = "manifest" if found.form == "parquet" and names_images(found) else found.form
        _check_labels_fit(source, self.address, form)
        if source.suffix and form != "tar":
            raise ConfigError(
                f"suffix {source.suffix!r} chooses in tar archives, and {self.address!r} is none; omit it."
            )
        prefix = f"{found.root.rstrip('/')}/" if self.one_of_several else ""
        if form == "manifest":  # names in two of them may be equal
            prefix = f"{self.address}/" if self.one_of_several else ""
            files = {prefix + i: file for i, file in read_manifests(found, source.roots).items()}
        elif form == "images":
            files = {prefix + f: ImageFile(f, version, sub_folder(f)) for f, version in found.files.items()}
        else:
            return self._list_archives(known, found, source, left_out, prefix)
        return self._list_files(known, found.root, files)

    def _list_files(self, known: list[Shard], root: str, files: dict[str, ImageFile]) -> tuple[list[Shard], int]:
        """Shards of single files (image id -> file): known ones that still hold an image, then new ones."""
        shards: list[Shard] = []
        missing: set[str] = set()
        for shard, listing in zip(known, read_ahead(known, self._read_files), strict=True):
            unchanged = _unchanged(shard, listing, files)
            present = unchanged - self.missing.get(shard.id, frozenset())
            missing |= unchanged - present
            if present:
                shards.append(self._update(shard, listing, present, files))
            for image_id in present:
                del files[image_id]  # there may be millions
        # Images that were missing get shards without others: `note_missing` notes no shard that is missing as a whole.
        shards += self._new_shards(root, sorted(files.keys() - missing), files)
        shards += self._new_shards(root, sorted(missing), files)
        return shards, len(files)

    def _read_files(self, shard: Shard) -> pa.Table:
        return read_listing(self.step.store, shard.listing, ["image_id", "version", "label", "file"])

    def _update(self, shard: Shard, listing: pa.Table, present: Set[str], files: Mapping[str, ImageFile]) -> Shard:
        """A known shard with the images that are present, and their labels and places as the source gives them now.

        Its id stays, and with it all work.
        """
        ids, names, versions, labels = (listing[c].to_pylist() for c in ("image_id", "file", "version", "label"))
        before = list(map(ImageFile, names, versions, labels))
        now = [files[i] if i in present else old for i, old in zip(ids, before, strict=True)]
        name = shard.listing if now == before else self._write_listing(shard.id, _listing_table(ids, now))
        return replace(shard, removed=frozenset(ids) - present, listing=name)

    def _new_shards(self, root: str, ids: list[str], files: Mapping[str, ImageFile]) -> Iterator[Shard]:
        for first in range(0, len(ids), self.shard_size):
            part = ids[first : first + self.shard_size]
            yield self._new_shard(root, _listing_table(part, [files[i] for i in part]))

    def _list_archives(
        self, known: list[Shard], found: Found, source: Source, left_out: LeftOut, prefix: str
    ) -> tuple[list[Shard], int]:
        """Shards of archives: those of unchanged archives, then of new and changed ones, which are read."""
        index = ArchiveIndex.of(self.step.store, found.root, found.form, prefix, source.suffix, self.shard_size)
        done = index.step.committed()
        shards = [s for s in known if found.files.get(s.archive) == s.version and s.commit in done]
        fresh = {file: found.files[file] for file in found.files.keys() - {s.archive for s in shards}}
        added = 0
        for file, records, of_archive in sorted(index.finish(fresh, done, self.spread), key=itemgetter(0)):
            new = [Shard(**r, root=found.root, archive=file, version=fresh[file]) for r in records]
            added += sum(s.rows for s in new)
            if new:
                new[0] = replace(new[0], left_out=tuple(of_archive))
            else:
                _count(of_archive, file, left_out)
            shards += new
        for shard in shards:
            _count(shard.left_out, shard.archive, left_out)
        if added:
            newest = max(shards, key=lambda shard: shard.archive in fresh)
            ids = read_listing(self.step.store, newest.listing, ["image_id"])["image_id"].to_pylist()
            warn_of_masks([i.rpartition("!")[2] for i in ids], self.address)
        if not shards:
            others = f", but {left_out}" if left_out.counts else ""
            raise ConfigError(f"The archives under {self.address!r} hold no image{others}; name others.")
        return shards, added

    def _new_shard(self, root: str, listing: pa.Table) -> Shard:
        digest = shard_digest(root, listing)
        while digest in self.taken:
            digest = hashlib.sha256(digest.encode()).hexdigest()[:16]
        return Shard(digest, len(listing), root, self._write_listing(digest, listing))

    def _write_listing(self, shard: str, listing: pa.Table) -> str:
        return self.step.store.write_hashed(self.step.path(f"shards/{shard}"), listing)


def _count(records: Iterable[LeftOutRecord], archive: str, left_out: LeftOut) -> None:
    """Count what is left out of an archive."""
    for reason, name, count in records:
        left_out.add(reason, f"{archive}!{name}", count)


def _read_missing(step: Step) -> dict[str, set[str]]:
    """Shard id -> images that `Corpus.note_missing` noted."""
    missing: dict[str, set[str]] = defaultdict(set)
    names = [f"{MISSING_FOLDER}/{n}" for n in step.store.names(step.path(MISSING_FOLDER))]
    for name, note in zip(names, read_ahead(names, step.read_json), strict=True):
        missing[name.rpartition("/")[2].partition("-")[0]].update(note["images"])
    return missing


def _unchanged(shard: Shard, listing: pa.Table, files: Mapping[str, ImageFile]) -> set[str]:
    """Images of a shard that are not removed and whose file still has the listed version."""
    pairs = zip(listing["image_id"].to_pylist(), listing["version"].to_pylist(), strict=True)
    return {i for i, version in pairs if i not in shard.removed and i in files and files[i].version == version}


def _listing_table(ids: list[str], files: list[ImageFile]) -> pa.Table:
    """Rows of `schema.LISTING` for images in single files."""
    empty = [None] * len(ids)
    columns = [ids, [f.version for f in files], [f.label for f in files], [f.file for f in files], empty, empty]
    return pa.table(columns, schema=schema.LISTING)


def _check_labels_fit(source: Source, address: str, form: Form) -> None:
    """Refuse a rule for true labels that the form of the images does not have."""
    fitting = {"images": "folders", "manifest": "column", "parquet": "column"}.get(form, source.labels)
    if source.labels not in ("none", fitting):
        raise ConfigError(f"labels {source.labels!r} does not fit {address!r} ({form}); use `{fitting}` or `none`.")
