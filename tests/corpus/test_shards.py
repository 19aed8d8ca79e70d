"""Corpora as append-only shards."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import fsspec
import pytest
from corpora import labels, read_all, write_files, write_tar
from corpora import listed as listed_at
from fsspec.implementations.memory import MemoryFileSystem

from upl_ray.config.settings import Source
from upl_ray.corpus.find import find
from upl_ray.corpus.shards import REJECTED, Corpus, Shard, keep_snapshot, list_corpus, read_corpus, read_snapshot
from upl_ray.storage.store import IO_THREADS, Store, read_ahead


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty files of three classes, in folders of different depth."""
    root = tmp_path / "images"
    for i in range(20):
        write(root, f"{'abc'[i % 3]}/{'deep/' * (i % 2)}{i:02d}.jpg")
    return root


def write(root: Path, image_id: str, content: str = "x", mtime: int = 1_000_000_000) -> None:
    path = root / image_id
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (mtime, mtime))


def listed(root: Path, shard_size: int = 8) -> Corpus:
    return list_corpus(Store(str(root.parent / "run")), Source(uri=str(root)), shard_size)


def present(corpus: Corpus) -> list[str]:
    return sorted(i for s in corpus.shards for i in ids_of(corpus, s) if i not in s.removed)


def ids_of(corpus: Corpus, shard: Shard) -> list[str]:
    ids: list[str] = corpus.listing(shard)["image_id"].to_pylist()
    return ids


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*.jpg"))


def test_every_image_stands_in_exactly_one_shard(root: Path) -> None:
    corpus = listed(root)
    assert present(corpus) == files(root)
    assert [s.rows for s in corpus.shards] == [8, 8, 4]
    assert (corpus.images, corpus.added) == (20, 20)


def test_listing_again_changes_nothing(root: Path) -> None:
    first = listed(root)
    manifest = first.step.store.read(first.step.path("manifest.json"))
    again = listed(root, shard_size=3)  # the size of new shards does not touch old ones
    assert (again.shards, again.digest, again.added) == (first.shards, first.digest, 0)
    assert first.step.store.read(first.step.path("manifest.json")) == manifest


def test_new_files_make_new_shards_only(root: Path) -> None:
    first = listed(root)
    for i in range(10):
        write(root, f"a/new{i}.jpg")
    second = listed(root)
    assert second.shards[:3] == first.shards
    assert [s.rows for s in second.shards[3:]] == [8, 2]
    assert (second.images, second.added) == (30, 10)
    assert second.digest != first.digest
    assert present(second) == files(root)


@pytest.mark.parametrize("change", [{"content": "xy"}, {"mtime": 1_000_000_001}])
def test_a_changed_file_leaves_its_shard_and_comes_in_a_new_one(root: Path, change: dict[str, object]) -> None:
    first = listed(root)
    victim = ids_of(first, first.shards[1])[3]
    write(root, victim, **change)  # type: ignore[arg-type]
    second = listed(root)
    assert second.shards[1].id == first.shards[1].id
    assert second.shards[1].removed == {victim}
    assert second.shards[1].state != first.shards[1].state
    assert (second.shards[0], second.shards[2]) == (first.shards[0], first.shards[2])
    assert ids_of(second, second.shards[3]) == [victim]
    assert (second.images, second.added) == (20, 1)
    assert present(second) == files(root)


def test_a_file_that_changed_back_counts_once(root: Path) -> None:
    first = listed(root)
    victim = ids_of(first, first.shards[0])[0]
    write(root, victim, "other")
    second = listed(root)
    write(root, victim)
    third = listed(root)
    assert third.shards[:3] == second.shards[:3]
    assert [ids_of(third, s) for s in third.shards[3:]] == [[victim]]  # the shard between is gone
    assert third.shards[3].id != second.shards[3].id
    assert present(third) == files(root)


def test_a_deleted_file_drops_out_and_comes_back_in_a_new_shard(root: Path) -> None:
    """The old one may have been embedded meanwhile, and then knows the image as a missing file."""
    first = listed(root)
    victim = ids_of(first, first.shards[0])[0]
    (root / victim).unlink()
    second = listed(root)
    assert second.shards[0].removed == {victim}
    assert (second.images, second.added) == (19, 0)
    assert present(second) == files(root)
    write(root, victim)
    third = listed(root)
    assert third.shards[:3] == second.shards
    assert [ids_of(third, s) for s in third.shards[3:]] == [[victim]]
    assert (third.images, third.added) == (20, 1)
    assert listed(root).shards == third.shards


def test_the_id_of_a_shard_that_is_gone_is_not_used_again(root: Path) -> None:
    seen: set[str] = set()
    for _ in range(3):  # all images of a shard go and come back, as under a folder that is not always mounted
        corpus = listed(root)
        assert present(corpus) == files(root)
        last = corpus.shards[-1]
        assert last.id not in seen
        seen.add(last.id)
        away = ids_of(corpus, last)
        for image_id in away:
            (root / image_id).unlink()
        listed(root)
        for image_id in away:
            write(root, image_id)


def test_a_missing_image_is_listed_again_in_a_new_shard_once(root: Path) -> None:
    """Its old shard was embedded without it; an image that is missing a second time, as a wrong name is, stays."""
    first = listed(root)
    missing = set(ids_of(first, first.shards[0])[2:4])
    first.note_missing(first.shards[0], missing)
    write(root, "new.jpg")
    changed = ids_of(first, first.shards[1])[0]
    write(root, changed, "other")
    first.note_missing(first.shards[1], {changed})
    second = listed(root)
    assert [s.id for s in second.shards[:3]] == [s.id for s in first.shards]
    assert [s.removed for s in second.shards[:2]] == [missing, {changed}]
    assert [set(ids_of(second, s)) for s in second.shards[3:]] == [{"new.jpg", changed}, missing]  # apart from others
    assert (second.added, present(second)) == (4, files(root))
    second.note_missing(second.shards[-1], missing)  # all of its shard: nothing is noted
    third = listed(root)
    assert (third.shards, third.added) == (second.shards, 0)
    assert read_corpus(third.step).shards == third.shards


def test_a_snapshot_stays_when_the_corpus_is_listed_again(root: Path) -> None:
    corpus = listed(root)
    kept = keep_snapshot(corpus, {"a/00.jpg": "damaged image"})
    write(root, "new.jpg")
    (root / "a/00.jpg").unlink()
    assert listed(root).digest != corpus.digest
    again = read_snapshot(kept)
    assert (again.shards, again.roots, again.labels_digest) == (corpus.shards, corpus.roots, corpus.labels_digest)
    assert kept.read_table(REJECTED).to_pylist() == [{"image_id": "a/00.jpg", "reason": "damaged image"}]
    assert keep_snapshot(corpus, {"a/00.jpg": "damaged image"}) == kept != keep_snapshot(corpus, {})


def test_reading_ahead_is_bounded_and_in_order() -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        return -item

    results = read_ahead(range(1000), read)
    taken = [next(results) for _ in range(3)]
    results.close()
    assert taken == [0, -1, -2]
    assert max(begun) < 3 + IO_THREADS
    assert list(read_ahead(range(100), read)) == [-i for i in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 0], lambda i: 1 / i))


def test_a_shard_without_any_image_left_is_gone(root: Path) -> None:
    first = listed(root)
    for image_id in ids_of(first, first.shards[1]):
        (root / image_id).unlink()
    second = listed(root)
    assert second.shards == (first.shards[0], first.shards[2])
    assert present(second) == files(root)


def test_a_random_history_always_lists_what_is_there(root: Path) -> None:
    rng = random.Random(0)
    before: dict[str, frozenset[str]] = {}
    gone: set[str] = set()  # ids of shards
    for step in range(25):
        for _ in range(rng.randrange(4)):
            there = files(root)
            kind = rng.choice(["new", "change", "delete", "touch"])
            if kind == "new" or len(there) < 3:
                write(root, f"n/{rng.randrange(30)}.jpg", mtime=step)
            elif kind == "delete":
                (root / rng.choice(there)).unlink()
            else:
                write(root, rng.choice(there), "xy" if kind == "change" else "x", mtime=rng.randrange(9))
        corpus = listed(root, shard_size=rng.randrange(1, 9))
        assert present(corpus) == files(root)
        assert corpus.images == len(files(root))
        assert listed(root).digest == corpus.digest
        now = {s.id: s.removed for s in corpus.shards}
        assert all(now[i] >= removed for i, removed in before.items() if i in now)  # what is gone stays gone
        assert not now.keys() & gone
        gone |= before.keys() - now.keys()
        before = now


class Shuffled(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Memory that lists in another order each time."""

    protocol = "shuffled"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("shuffled://")))

    def find(self, *args: Any, **kwargs: Any) -> Any:
        found = super().find(*args, **kwargs)
        return dict(random.sample(sorted(found.items()), len(found))) if isinstance(found, dict) else found


def test_the_order_of_the_file_systems_listing_is_irrelevant(tmp_path: Path) -> None:
    fsspec.register_implementation("shuffled", Shuffled, clobber=True)
    names = [f"c{i % 3}/{i}.jpg" for i in range(30)]
    for name in names:
        Shuffled().pipe(f"/{tmp_path.name}/{name}", b"x" * len(name))
    uri = f"shuffled:///{tmp_path.name}"
    assert list(find(uri).files) != list(find(uri).files)
    corpora = [list_corpus(Store(str(tmp_path / str(i))), Source(uri=uri), 8) for i in range(5)]
    assert all(c.shards == corpora[0].shards for c in corpora)
    assert present(corpora[0]) == sorted(names)


def test_a_relative_folder_is_found_by_workers_that_stand_elsewhere(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    corpus = list_corpus(Store(str(root.parent / "run")), Source(uri="images"), 8)
    monkeypatch.chdir("/")
    assert read_all(corpus) == dict.fromkeys(files(root), b"x")


def test_several_addresses_make_one_corpus_with_full_names(tmp_path: Path) -> None:
    write_files(tmp_path / "one", {"a/x.jpg": b"1"})
    write_files(tmp_path / "two", {"a/x.jpg": b"2"})
    write_tar(tmp_path / "three" / "t.tar", {"a/x.jpg": b"3"})
    addresses = tuple(str(tmp_path / n) for n in ("one", "two", "three"))
    corpus = listed_at(tmp_path, addresses)
    assert read_all(corpus) == {
        f"{tmp_path}/one/a/x.jpg": b"1",
        f"{tmp_path}/two/a/x.jpg": b"2",
        f"{tmp_path}/three/t.tar!a/x.jpg": b"3",
    }
    assert set(labels(corpus).values()) == {"a"}
    again = listed_at(tmp_path, addresses)
    assert (again.shards, again.added) == (corpus.shards, 0)
    assert set(read_all(listed_at(tmp_path, (addresses[0], f"{addresses[0]}/")))) == {"a/x.jpg"}  # twice the same
