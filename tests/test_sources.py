"""Every form that a corpus may have: found out, listed, read back byte for byte, kept up to date, refused clearly."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from upl_ray import archives, reading
from upl_ray.artifacts import Store
from upl_ray.config import ConfigError, Source
from upl_ray.corpus import Corpus, list_corpus
from upl_ray.reading import read_images
from upl_ray.sources import find

Contents = dict[str, bytes]


def contents(n: int, seed: int = 0) -> Contents:
    """Names in two folders and bytes of very different lengths."""
    rng = random.Random(seed)
    return {f"{'ab'[i % 2]}/{i:03d}.jpg": rng.randbytes(rng.choice([0, 1, 511, 512, 513, 70_000])) for i in range(n)}


def write_tar(path: Path, members: Contents) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_files(root: Path, files: Contents) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def listed(tmp_path: Path, uri: object, shard_size: int = 7, **source: object) -> Corpus:
    given = Source(uri=uri if isinstance(uri, tuple) else str(uri), **source)  # type: ignore[arg-type]
    return list_corpus(Store(str(tmp_path / "run")), given, shard_size)


def read_all(corpus: Corpus) -> dict[str, bytes | str]:
    """Every present image of a corpus, read in spans of odd sizes."""
    found: dict[str, bytes | str] = {}
    for shard in corpus.shards:
        listing = corpus.listing(shard)
        for first in range(0, shard.rows, 3):
            some = listing.slice(first, 3)
            ids = some["image_id"].to_pylist()
            found |= {i: d for i, d in zip(ids, read_images(shard.root, some), strict=True) if i not in shard.removed}
    return found


@pytest.mark.parametrize("form", ["files", "tar"])
def test_a_file_above_the_limit_is_not_read(tmp_path: Path, form: str) -> None:
    small, large = b"1" * 100, b"2" * 101
    members = {"a.jpg": small, "b.jpg": large, "c.jpg": small}
    if form == "tar":
        write_tar(tmp_path / "shards" / "0.tar", members)
    else:
        write_files(tmp_path / "shards", members)
    corpus = listed(tmp_path, tmp_path / "shards")
    found = read_images(corpus.shards[0].root, corpus.listing(corpus.shards[0]), max_bytes=100)
    assert found == [small, "more than 100 bytes", small]


@pytest.mark.parametrize("form", ["files", "tar"])
def test_large_images_come_one_by_one_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(reading, "LARGE", 1000)
    members = {f"{i}.jpg": bytes([i]) * n for i, n in enumerate((10, 3000, 1000, 1001, 9000, 0))}
    if form == "tar":
        write_tar(tmp_path / "shards" / "0.tar", members)
    else:
        write_files(tmp_path / "shards", members)
    corpus = listed(tmp_path, tmp_path / "shards")
    (shard,) = corpus.shards
    listing = corpus.listing(shard)
    held = [len(data) for data in read_images(shard.root, listing, reading.LARGE) if isinstance(data, bytes)]
    assert sorted(held) == [0, 10, 1000]  # what is in memory together
    for most in (500, 1000, 5000, 10_000):
        assert list(reading.read_each(shard.root, listing, most)) == read_images(shard.root, listing, most)


def labels(corpus: Corpus) -> dict[str, str | None]:
    return {i: label for shard in corpus.shards for i, label in corpus.labels(shard).items()}


def test_tar_members_are_read_byte_for_byte(tmp_path: Path) -> None:
    parts = {"x/0.tar": contents(20), "1.tar": contents(9, 1)}
    for name, members in parts.items():
        write_tar(tmp_path / "shards" / name, members)
    corpus = listed(tmp_path, tmp_path / "shards")
    assert read_all(corpus) == {f"{p}!{m}": d for p, members in parts.items() for m, d in members.items()}
    assert {s.archive for s in corpus.shards} == set(parts)
    assert max(s.rows for s in corpus.shards) == 7
    assert labels(corpus)["x/0.tar!b/001.jpg"] == "b"


def test_labels_of_a_webdataset_come_from_cls_and_json(tmp_path: Path) -> None:
    members = {
        "0.jpg": b"a",
        "0.cls": b"3\n",
        "0.txt": b"a caption",
        "./k/1.seg.png": b"b",
        "./k/1.json": json.dumps({"label": "sea horse", "x": 1}).encode(),
        "k/2.webp": b"c",
        "k/2.json": b"no json",
        ".hidden.jpg": b"d",
        "notes.md": b"e",
    }
    write_tar(tmp_path / "a.tar", members)
    assert labels(listed(tmp_path, tmp_path / "a.tar")) == {
        "a.tar!0.jpg": "3",
        "a.tar!k/1.seg.png": "sea horse",
        "a.tar!k/2.webp": "k",
    }


def test_members_that_lead_out_of_the_archive_are_only_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", {"../../evil.jpg": b"x", "/etc/evil.jpg": b"y"})
    assert set(read_all(listed(tmp_path, tmp_path / "in")).values()) == {b"x", b"y"}
    assert not list(tmp_path.rglob("evil.jpg"))


def test_neighbours_in_a_tar_come_in_one_request(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{i:03d}.jpg": b"x" * 5000 for i in range(100)})

    rows = archives.index_tar(pafs.LocalFileSystem(), str(tmp_path / "a.tar"))
    ranges = [(offset, length or 0) for _, _, offset, length in rows]
    assert [len(g) for g in archives._neighbours(ranges)] == [100]
    far = [(0, 10), (archives.GAP + 10, 5), (2 * archives.GAP + 16, 5), (2 * archives.GAP + 16 + archives.LONGEST, 1)]
    assert [len(g) for g in archives._neighbours(far)] == [2, 1, 1]


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_rows_are_read_byte_for_byte(tmp_path: Path, struct: bool) -> None:
    data = [bytes([i]) * (i * 100) for i in range(50)]
    image = [{"bytes": d, "path": None} for d in data] if struct else data
    table = pa.table({"image": image, "label": [i % 3 for i in range(50)], "text": ["x"] * 50})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=8)
    corpus = listed(tmp_path, tmp_path / "in", labels="column")
    assert read_all(corpus) == {f"a.parquet!{i}": d for i, d in enumerate(data)}
    assert labels(corpus) == {f"a.parquet!{i}": str(i % 3) for i in range(50)}


def test_a_parquet_row_without_bytes_has_a_reason(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [b"x", None]}), tmp_path / "a.parquet")
    assert read_all(listed(tmp_path, tmp_path / "a.parquet")) == {
        "a.parquet!0": b"x",
        "a.parquet!1": "no bytes in this row",
    }


def write_manifest(path: Path, files: list[str], suffix: str, **columns: list[str]) -> Path:
    path = path.with_suffix(suffix)
    records = [{"path": f, **{k: v[i] for k, v in columns.items()}} for i, f in enumerate(files)]
    if suffix == ".txt":
        path.write_text("\n".join(files) + "\n\n")
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".parquet"])
def test_a_manifest_names_files_beside_it_and_elsewhere(tmp_path: Path, suffix: str) -> None:
    files = contents(12)
    write_files(tmp_path / "data", files)
    elsewhere = str(tmp_path / "other" / 'z, "é".jpg')
    write_files(tmp_path / "other", {'z, "é".jpg': b"far"})
    names = [*files, elsewhere]
    given = {} if suffix == ".txt" else {"label": [n[0] for n in names]}
    manifest = write_manifest(tmp_path / "data" / "list", names, suffix, **given)
    with pytest.raises(ConfigError, match=r"lies outside of .* corpus\.roots"):
        listed(tmp_path, manifest)
    corpus = listed(tmp_path, manifest, roots=(str(tmp_path / "other"),))
    assert read_all(corpus) == {**files, elsewhere: b"far"}
    assert labels(corpus) == {n: given["label"][i] if given else None for i, n in enumerate(names)}


def test_a_growing_manifest_adds_only_what_is_new_and_versions_supersede(tmp_path: Path) -> None:
    files = contents(10)
    write_files(tmp_path, files)
    names = list(files)
    manifest = write_manifest(tmp_path / "m", names[:8], ".csv", version=["1"] * 8)
    first = listed(tmp_path, manifest)
    write_manifest(tmp_path / "m", names, ".csv", version=["2", *["1"] * 9])
    second = listed(tmp_path, manifest)
    assert (first.added, second.added, second.images) == (8, 3, 10)
    assert read_all(second) == files
    assert [s.id for s in second.shards[: len(first.shards)]] == [s.id for s in first.shards]


def test_corrected_labels_and_moved_files_of_a_manifest_are_taken_over_by_the_same_shards(tmp_path: Path) -> None:
    files = contents(6)
    write_files(tmp_path, files)
    write_files(tmp_path / "moved", files)
    names, about = list(files), {"version": ["1"] * 6, "image_id": list(files)}
    first = listed(tmp_path, write_manifest(tmp_path / "m", names, ".csv", label=["cat"] * 6, **about))
    same = listed(tmp_path, write_manifest(tmp_path / "m", names, ".csv", label=["cat"] * 6, **about))
    assert (same.shards, same.labels_digest) == (first.shards, first.labels_digest)
    mended = listed(tmp_path, write_manifest(tmp_path / "m", names, ".csv", label=["cat", *["dog"] * 5], **about))
    assert labels(mended) == {n: "cat" if n == names[0] else "dog" for n in names}
    assert (mended.digest, mended.added) == (first.digest, 0)
    assert mended.labels_digest != first.labels_digest
    elsewhere = [f"moved/{n}" for n in names[:4]]
    moved = listed(tmp_path, write_manifest(tmp_path / "m", elsewhere, ".csv", **{k: v[:4] for k, v in about.items()}))
    for name in names:
        (tmp_path / name).unlink()
    assert (moved.added, moved.images) == (0, 4)
    assert read_all(moved) == {n: files[n] for n in names[:4]}
    assert [s.id for s in moved.shards] == [s.id for s in first.shards]


def test_another_file_under_the_same_id_is_another_image_unless_a_version_says_otherwise(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"a", "b.jpg": b"b"})
    listed(tmp_path, write_manifest(tmp_path / "m", ["a.jpg"], ".csv", image_id=["1"]))
    changed = listed(tmp_path, write_manifest(tmp_path / "m", ["b.jpg"], ".csv", image_id=["1"]))
    assert (changed.added, changed.images, read_all(changed)) == (1, 1, {"1": b"b"})


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_manifest(tmp_path: Path, suffix: str) -> None:
    write_files(tmp_path, {"a.jpg": b"a"})
    manifest = write_manifest(tmp_path / "m", ["a.jpg"], suffix)
    manifest.write_bytes(b"\xef\xbb\xbf" + manifest.read_bytes())
    assert read_all(listed(tmp_path, manifest)) == {"a.jpg": b"a"}


def test_numbers_with_gaps_are_labels_as_they_were_written(tmp_path: Path) -> None:
    column = pa.array([3.0, None, math.nan, 2.5], pa.float64())
    expected = ["3", None, None, "2.5"]
    pq.write_table(pa.table({"jpg": [b"x"] * 4, "label": column}), tmp_path / "bytes.parquet")
    assert list(labels(listed(tmp_path, tmp_path / "bytes.parquet")).values()) == expected
    names = [f"{i}.jpg" for i in range(4)]
    pq.write_table(pa.table({"uri": names, "label": column}), tmp_path / "names.parquet")
    assert list(labels(listed(tmp_path, tmp_path / "names.parquet")).values()) == expected


def test_a_file_that_a_manifest_names_in_vain_has_a_reason(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"x"})
    manifest = write_manifest(tmp_path / "m", ["a.jpg", "gone.jpg"], ".txt")
    assert read_all(listed(tmp_path, manifest)) == {"a.jpg": b"x", "gone.jpg": "missing file"}


def test_names_that_no_image_can_have_are_reasons_and_stop_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"x", "folder/b.jpg": b"y"})
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "ring.jpg").symlink_to(tmp_path / "ring.jpg")
    long, deep = "n" * 5000 + ".jpg", "n/" * 3000 + "x.jpg"
    names = ["a.jpg", "folder", "folder/", "a.jpg/c.jpg", "pipe.jpg", "ring.jpg", long, deep]
    found = read_all(listed(tmp_path, write_manifest(tmp_path / "m", names, ".txt"), shard_size=9))
    folder, missing = "not a file", "missing file"
    assert found == dict(zip(names, [b"x", folder, folder, missing, folder, missing, missing, missing], strict=True))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("m.txt", "a.jpg\nb/../../secret.jpg\n", r"holds `\.\.`"),
        ("m.txt", "a.jpg\na.jpg\n", r"names 'a.jpg' twice \(row 2\)"),
        ("m.txt", "\n\n", "names no image"),
        ("m.txt", "/etc/passwd.jpg\n", r"lies outside of .* corpus\.roots: \[/etc\]"),
        ("m.txt", "http://169.254.169.254/a.jpg\n", "metadata service"),
        ("m.txt", "file:///etc/a.jpg\n", "lies outside of"),
        ("m.csv", "name,label\na.jpg,cat\n", r"Row 1 .* names no image; it needs a column uri or"),
        ("m.jsonl", '{"uri": "a.jpg"}\n{"uri": \n', "cannot be read"),
        ("m.jsonl", '["a.jpg"]\n', "every line should be an object"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=match):
        listed(tmp_path, tmp_path / name)


def test_an_unchanged_archive_is_not_read_again_and_a_changed_one_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for i in range(3):
        write_tar(folder / f"{i}.tar", contents(10, i))
    first = listed(tmp_path, folder)
    kept, time = (folder / "0.tar").read_bytes(), (folder / "0.tar").stat().st_mtime_ns
    (folder / "0.tar").write_bytes(bytes([255]) * len(kept))  # no archive, if it were read
    os.utime(folder / "0.tar", ns=(time, time))
    write_tar(folder / "1.tar", contents(12, 7))
    (folder / "2.tar").unlink()
    write_tar(folder / "3.tar", contents(4, 3))
    second = listed(tmp_path, folder)
    (folder / "0.tar").write_bytes(kept)
    os.utime(folder / "0.tar", ns=(time, time))
    assert [s for s in second.shards if s.archive == "0.tar"] == [s for s in first.shards if s.archive == "0.tar"]
    assert (second.images, second.added) == (10 + 12 + 4, 12 + 4)
    expected = {
        f"{i}.tar!{m}": d
        for i, n in ((0, contents(10, 0)), (1, contents(12, 7)), (3, contents(4, 3)))
        for m, d in n.items()
    }
    assert read_all(second) == expected
    third = listed(tmp_path, folder)
    assert (third.shards, third.added) == (second.shards, 0)


def test_an_archive_that_changes_while_it_is_read_stops_the_task(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", contents(10))
    corpus = listed(tmp_path, tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", contents(50, 1))
    with pytest.raises(RuntimeError, match="has changed since it was listed"):
        read_all(corpus)


def test_several_addresses_make_one_corpus_with_full_names(tmp_path: Path) -> None:
    write_files(tmp_path / "one", {"a/x.jpg": b"1"})
    write_files(tmp_path / "two", {"a/x.jpg": b"2"})
    write_tar(tmp_path / "three" / "t.tar", {"a/x.jpg": b"3"})
    addresses = tuple(str(tmp_path / n) for n in ("one", "two", "three"))
    corpus = listed(tmp_path, addresses)
    assert read_all(corpus) == {
        f"{tmp_path}/one/a/x.jpg": b"1",
        f"{tmp_path}/two/a/x.jpg": b"2",
        f"{tmp_path}/three/t.tar!a/x.jpg": b"3",
    }
    assert set(labels(corpus).values()) == {"a"}
    again = listed(tmp_path, addresses)
    assert (again.shards, again.added) == (corpus.shards, 0)


def test_a_pattern_chooses_among_files(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar", "test-0.tar"):
        write_tar(tmp_path / "in" / name, {"x.jpg": name.encode()})
    write_files(tmp_path / "in", {"photo.jpg": b"p", "deep/er/photo.png": b"q"})
    assert set(read_all(listed(tmp_path, tmp_path / "in" / "train-*.tar"))) == {
        "train-0.tar!x.jpg",
        "train-1.tar!x.jpg",
    }
    assert set(find(f"{tmp_path}/in/*.png").files) == {"deep/er/photo.png"}
    with pytest.raises(ConfigError, match=r"holds 2 images files and 3 tar files; say which by a pattern"):
        find(str(tmp_path / "in"))


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.tar", b"this is no archive" * 100, "no tar archive, or damaged"),
        ("a.tar.gz", b"", "is compressed"),
        ("a.parquet", None, "no column of image bytes .* its columns are number"),
        ("missing.tar", None, "cannot be listed"),
    ],
)
def test_a_bad_archive_is_refused(tmp_path: Path, name: str, data: bytes | None, match: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    elif name == "a.parquet":
        pq.write_table(pa.table({"number": [1, 2]}), tmp_path / name)
    with pytest.raises(ConfigError, match=match):
        listed(tmp_path, tmp_path / name)


def test_a_truncated_tar_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", contents(20))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(ConfigError, match="damaged"):
        listed(tmp_path, tmp_path / "a.tar")


def test_labels_that_a_form_cannot_have_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a/x.jpg": b"1"})
    with pytest.raises(ConfigError, match=r"labels 'column' does not fit .* use `folders` or `none`"):
        listed(tmp_path, tmp_path / "in", labels="column")
    with pytest.raises(ConfigError, match=r"labels 'folders' does not fit .* use `column` or `none`"):
        listed(tmp_path, write_manifest(tmp_path / "m", ["in/a/x.jpg"], ".txt"), labels="folders")


def test_manifests_that_give_one_id_to_two_files_share_no_shard(tmp_path: Path) -> None:
    """A shard's features are found by its id, whatever corpus it is of."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    about = {"image_id": ["1"], "version": ["1"]}
    first = listed(tmp_path, write_manifest(tmp_path / "train", ["a.jpg"], ".csv", **about))
    other = listed(tmp_path, write_manifest(tmp_path / "test", ["b.jpg"], ".csv", **about))
    again = listed(tmp_path, write_manifest(tmp_path / "copy", ["a.jpg"], ".csv", **about))
    assert first.shards[0].id == again.shards[0].id != other.shards[0].id
