"""Tar and Parquet archives: images byte for byte; a damaged or hostile one is refused by name, before work starts."""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from corpora import contents, labels, listed, read_all, write_files, write_tar

from upl_ray.corpus import archives
from upl_ray.errors import ConfigError, JobError


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
        "k/.thumbs/x.jpg": b"d",
        "k/@eaDir/x.jpg": b"d",
        "3.jpg": b"f",
        "3.cls": "Brötchen".encode("latin-1"),
        "4.jpg": b"g",
        "4.cls": "\ufeffcat".encode(),
        "notes.md": b"e",
    }
    write_tar(tmp_path / "a.tar", members)
    corpus = listed(tmp_path, tmp_path / "a.tar")
    unread = {"label that cannot be read (.cls)": 1, "label that cannot be read (.json)": 1}
    assert corpus.left_out.counts == {".txt": 1, ".md": 1, "folder of a system": 1, **unread}
    assert labels(corpus) == {
        "a.tar!3.jpg": None,
        "a.tar!4.jpg": "cat",
        "a.tar!0.jpg": "3",
        "a.tar!k/1.seg.png": "sea horse",
        "a.tar!k/2.webp": "k",
    }
    (shard,) = corpus.shards
    assert set(corpus.labels(shard, "column").values()) == {"cat", "3", "sea horse", None}
    assert list(map(corpus.labels(shard, "folders").get, ("a.tar!0.jpg", "a.tar!k/1.seg.png"))) == [None, "k"]


def test_archives_behind_each_other_are_all_read(tmp_path: Path) -> None:
    """`cat a.tar b.tar c.tar > all.tar`: end marks and padding lie between them."""
    parts = [contents(n, n) for n in (5, 1, 9)]
    renamed = [{f"{i}/{name}": data for name, data in part.items()} for i, part in enumerate(parts)]
    whole = b""
    for part in renamed:
        write_tar(tmp_path / "part.tar", part)
        whole += (tmp_path / "part.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(whole + bytes(3 * 2**20))
    expected = {f"all.tar!{name}": data for part in renamed for name, data in part.items()}
    assert read_all(listed(tmp_path, tmp_path / "all.tar")) == expected
    (tmp_path / "all.tar").write_bytes(whole + bytes(2**20) + b"no archive" * 100)
    with pytest.raises(ConfigError, match=r"all\.tar' is no tar archive, or damaged"):
        listed(tmp_path, tmp_path / "all.tar")


def test_a_name_in_two_archives_behind_each_other_is_refused(tmp_path: Path) -> None:
    """Shards that all begin at 0000.jpg: one of two images, or labels, would be lost. Side files are none."""
    for parts in ([{"0000.jpg": b"a"}, {"0000.jpg": b"b"}], [{"0000.jpg": b"", "0000.cls": b"0"}, {"0000.cls": b"1"}]):
        whole = b""
        for part in parts:
            write_tar(tmp_path / "part.tar", part)
            whole += (tmp_path / "part.tar").read_bytes()
        (tmp_path / "all.tar").write_bytes(whole)
        with pytest.raises(
            ConfigError, match=r"all\.tar' is made of archives of which two hold '0000\.\w+'; leave them"
        ):
            listed(tmp_path, tmp_path / "all.tar")


def test_side_files_of_archives_behind_each_other_are_no_labels(tmp_path: Path) -> None:
    whole = b""
    for image in ("a.jpg", "b.jpg"):
        write_tar(tmp_path / "part.tar", {"info.json": b'{"author": "x"}', "index.json": b'{"class": 1}', image: b""})
        whole += (tmp_path / "part.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(whole)
    assert set(read_all(listed(tmp_path, tmp_path / "all.tar"))) == {"all.tar!a.jpg", "all.tar!b.jpg"}


def test_a_member_that_is_replaced_is_counted(tmp_path: Path) -> None:
    """`tar --update` puts a changed file behind the others."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        members = (("0.jpg", b"old"), ("0.json", b'{"label": 1}'), ("0.jpg", b"new!"), ("0.json", b'{"label": 2}'))
        members += (("1.jpg", b""), ("1.json", b'{"label": 1}'), ("1.json", b"{}"))
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    corpus = listed(tmp_path, tmp_path / "a.tar")
    assert read_all(corpus) == {"a.tar!0.jpg": b"new!", "a.tar!1.jpg": b""}
    assert labels(corpus) == {"a.tar!0.jpg": "2", "a.tar!1.jpg": None}
    assert str(corpus.left_out) == "3 x member that a later one of its name replaces (a.tar!0.jpg)"


SAMPLES = {
    "dots of their own": (
        {"cam.00.jpg": b"a", "cam.00.cls": b"0", "cam.01.jpg": b"b", "cam.01.cls": b"1", "x.jpg": b"c", "x.cls": b"2"},
        "",
        {"cam.00.jpg": "0", "cam.01.jpg": "1", "x.jpg": "2"},
    ),
    "dots and some labels": (
        {"cam.00.jpg": b"a", "cam.01.jpg": b"b", "cam.01.cls": b"1", "cam.02.jpg": b"c", "cam.02.cls": b"2"},
        "",
        {"cam.00.jpg": None, "cam.01.jpg": "1", "cam.02.jpg": "2"},
    ),
    "numbers of two cameras": (
        {"a.00.jpg": b"a", "a.01.jpg": b"b", "b.00.jpg": b"c", "b.01.jpg": b"d"},
        "",
        dict.fromkeys(["a.00.jpg", "a.01.jpg", "b.00.jpg", "b.01.jpg"]),
    ),
    "labels of two sides": (
        {f"{i}.{side}{end}": side.encode() for i in "01" for side in ("left", "right") for end in (".jpg", ".cls")},
        "",
        {f"{i}.{side}.jpg": side for i in "01" for side in ("left", "right")},
    ),
    "dots and no labels": ({"a/v1.0.jpg": b"a", "a/v1.1.jpg": b"b"}, "", {"a/v1.0.jpg": "a", "a/v1.1.jpg": "a"}),
    "a label before and one behind": (
        {"0.cls": b"zero", "0.jpg": b"a", "1.jpg": b"b", "1.cls": b"one"},
        "",
        {"0.jpg": "zero", "1.jpg": "one"},
    ),
    "upper case": (
        {"0.JPG": b"a", "0.CLS": b"cat", "1.JPEG": b"b", "1.JSON": b'{"label": 3}'},
        "",
        {"0.JPG": "cat", "1.JPEG": "3"},
    ),
    "cls before json": ({"0.jpg": b"a", "0.cls": b"cat", "0.json": b'{"label": "dog"}'}, "", {"0.jpg": "cat"}),
    "json behind cls": ({"0.json": b'{"label": "dog"}', "0.jpg": b"a", "0.cls": b"cat"}, "", {"0.jpg": "cat"}),
    "the chosen of two images": (
        {"0.jpg": b"a", "0.seg.png": b"m", "0.cls": b"cat", "1.jpg": b"b", "1.seg.png": b"m", "1.cls": b"dog"},
        "jpg",
        {"0.jpg": "cat", "1.jpg": "dog"},
    ),
    "the chosen of two sides": (
        {"0.left.jpg": b"a", "0.right.jpg": b"b", "0.cls": b"cat"},
        ".RIGHT.jpg",
        {"0.right.jpg": "cat"},
    ),
    "another image's json is none of its label": (
        {"0.jpg": b"a", "0.meta.json": b'{"label": "cat"}'},
        "",
        {"0.jpg": "cat"},
    ),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_each_image_of_a_tar_has_the_label_of_its_key(tmp_path: Path, kind: str) -> None:
    members, suffix, expected = SAMPLES[kind]
    for order in (list(members), list(reversed(members))):
        write_tar(tmp_path / "a.tar", {name: members[name] for name in order})
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        found = labels(listed(tmp_path, tmp_path / "a.tar", 100, suffix=suffix))
        assert found == {f"a.tar!{name}": label for name, label in expected.items()}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["0000.jpg", "0000.seg.png", "0000.cls"],
            r"2 images of one key, '0000\.jpg', '0000\.seg\.png'; .* corpus\.suffix 'jpg'",
        ),
        (["0.jpg", "0.png"], r"2 images of one key, '0\.jpg', '0\.png'; .* 'jpg'"),
        (["0.left.jpg", "0.right.jpg", "0.cls"], r"2 images of one key, .* corpus\.suffix 'left\.jpg'"),
        (["0.rgb.png", "0.seg.png", "1.rgb.png", "1.seg.png"], r"2 images of one key, .* corpus\.suffix 'rgb\.png'"),
        (["0.rgb.png", "0.seg.png", "0.rgb.cls", "1.rgb.png", "1.seg.png", "1.rgb.cls"], "2 images of one key"),
        (["0.jpg", "0.a.cls", "0.b.cls"], r"2 labels for '0\.jpg', of '0\.a', '0\.b'; keep one"),
    ],
)
def test_images_and_labels_that_cannot_be_told_apart_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    for order in (names, names[::-1]):
        write_tar(tmp_path / "a.tar", dict.fromkeys(order, b"1"))
        with pytest.raises(ConfigError, match=words) as refused:
            listed(tmp_path, tmp_path / "a.tar")
        assert "\n" not in str(refused.value)


def test_a_suffix_chooses_in_tar_archives_only(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a.jpg": b"a"})
    with pytest.raises(ConfigError, match="suffix 'png' chooses in tar archives"):
        listed(tmp_path, tmp_path / "in", suffix="png")
    write_tar(tmp_path / "tars" / "a.tar", {"0.jpg": b"a", "0.seg.png": b"b"})
    sides = [listed(tmp_path, tmp_path / "tars", suffix=suffix) for suffix in ("jpg", "seg.png", "jpg")]
    assert [list(read_all(corpus).values()) for corpus in sides] == [[b"a"], [b"b"], [b"a"]]
    assert sides[0].digest == sides[2].digest != sides[1].digest


def test_members_that_are_no_images_are_counted_in_every_listing(tmp_path: Path) -> None:
    members = ["0.jpg", "0.txt", "1.heic", "x/2.HEIC", "3", ".hidden", "0.cls", "0.json", "4.seg.png", "4.jpg"]
    write_tar(tmp_path / "in" / "a.tar", dict.fromkeys(members, b"1"))
    write_tar(tmp_path / "in" / "b.tar", {"5.heic": b"1"})
    for _ in range(2):  # archives are read in the first alone
        left_out = listed(tmp_path, tmp_path / "in", 1, suffix="jpg").left_out
        assert left_out.counts == {".heic": 3, ".txt": 1, "without suffix": 1, ".seg.png": 1}
        assert left_out.examples[".txt"] == "a.tar!0.txt"
    (tmp_path / "in" / "a.tar").unlink()
    with pytest.raises(ConfigError, match=r"hold no image, but 1 x \.heic \(b\.tar!5\.heic\); name others"):
        listed(tmp_path, tmp_path / "in", suffix="jpg")


def test_members_that_lead_out_of_the_archive_are_only_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", {"../../evil.jpg": b"x", "/etc/evil.jpg": b"y"})
    assert set(read_all(listed(tmp_path, tmp_path / "in")).values()) == {b"x", b"y"}
    assert not list(tmp_path.rglob("evil.jpg"))


def test_neighbours_in_a_tar_come_in_one_request(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{i:03d}.jpg": b"x" * 5000 for i in range(100)})

    rows = archives.index_tar(pafs.LocalFileSystem(), str(tmp_path / "a.tar")).rows
    ranges = [(offset, length or 0) for _, _, offset, length in rows]
    assert [len(g) for g in archives._neighbours(ranges)] == [100]
    far = [(0, 10), (archives.GAP + 10, 5), (2 * archives.GAP + 16, 5), (2 * archives.GAP + 16 + archives.LONGEST, 1)]
    assert [len(g) for g in archives._neighbours(far)] == [2, 1, 1]


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "struct"])
def test_parquet_rows_are_read_byte_for_byte(tmp_path: Path, kind: str) -> None:
    data = [bytes([i]) * (i * 100) for i in range(50)]
    image = pa.array([{"bytes": d, "path": None} for d in data] if kind == "struct" else data)
    image = image if kind == "struct" else image.cast(getattr(pa, kind)())
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


def block(name: bytes, size: bytes, kind: bytes = b"0", body: bytes = b"") -> bytes:
    """A tar header with whatever size field, and a body."""
    header = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.rjust(11, b"0") + b"\0")
    header += b"00000000000\0" + b" " * 8 + kind + bytes(100) + b"ustar\x0000"
    header = header.ljust(512, b"\0")
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + body + bytes(-len(body) % 512)


def pax(**headers: str) -> bytes:
    """A PAX header for the member behind it."""
    body = b""
    for key, value in headers.items():
        line = f" {key.replace('__', '.')}={value}\n".encode()
        length = next(n for n in range(len(line), len(line) + 9) if n == len(line) + len(str(n)))
        body += str(length).encode() + line
    return block(b"pax", b"%o" % len(body), b"x", body)


MINUS_512 = b"\xff" * 10 + b"\xfe\x00"  # as GNU tar writes negative numbers


def negative(header: bytes) -> bytes:
    """The same header with a size of -512."""
    changed = bytearray(header)
    changed[124:136] = MINUS_512
    changed[148:156] = b"%06o\0 " % (sum(changed[:148]) + 256 + sum(changed[156:512]))
    return bytes(changed)


IMAGE = block(b"a.jpg", b"3", body=b"abc")


END = bytes(1024)


DAMAGED = {
    "backwards": IMAGE + negative(block(b"b.jpg", b"0")) + END,
    "long names of long names": block(b"long", b"10", b"L", b"x" * 8) * 3000 + IMAGE + END,
    "sparse map of letters": pax(GNU__sparse__map="a,b", GNU__sparse__size="9") + IMAGE + END,
    "negative PAX size": pax(size="-1024") + IMAGE + END,
    "huge PAX size": pax(size=str(2**62)) + IMAGE + END,
    "a PAX size of letters": pax(size="many") + IMAGE + END,
    "nothing": b"",
    "cut": (IMAGE + IMAGE)[:1400],
    "text": b"this is no archive" * 100,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_tar_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bad.tar").write_bytes(DAMAGED[kind])
    with pytest.raises(ConfigError, match=r"bad\.tar") as error:
        listed(tmp_path, tmp_path / "bad.tar", 100)
    assert "\n" not in str(error.value)


def test_mutated_tars_are_listed_or_refused(tmp_path: Path) -> None:
    """Random fields of headers with right checksums, where tarfile is at its most trusting."""
    intact = pax(path="b/c.png", comment="ü") + IMAGE + block(b"long", b"10", b"L", b"x" * 8) + IMAGE + IMAGE + END
    outcomes = {True: 0, False: 0}
    for number in range(1500):
        rng, data = random.Random(number), bytearray(intact)
        for _ in range(rng.choice([1, 1, 2])):
            start = 512 * rng.randrange(len(data) // 512 - 2)
            first, length = rng.choice([(0, 100), (124, 12), (156, 1), (345, 155), (386, 96), (0, 40)])
            value = rng.choice([rng.randrange(256), *b"-0179LKSxgX=, \xff\x80"])
            data[start + first + rng.randrange(length)] = value
            if rng.random() < 0.3:
                data[start + 124 : start + 136] = rng.choice([MINUS_512, b"\xff" * 12, b"\x80" + b"\x7f" * 11])
        for start in range(0, len(data), 512):
            header = data[start : start + 512]
            if header[257:262] == b"ustar":
                data[start + 148 : start + 156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
        (tmp_path / "x.tar").write_bytes(data)
        try:
            archives.index_tar(pafs.LocalFileSystem(), str(tmp_path / "x.tar"))
            outcomes[True] += 1
        except ConfigError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 100


def test_names_of_other_encodings_are_read_and_shown_with_escapes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "latin.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, data in (("ä/é.jpg", b"1"), ("ä/é.cls", b"cat"), ("ü.jpg", b"2")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    corpus = listed(tmp_path, tmp_path / "latin.tar", 100)
    assert read_all(corpus) == {"latin.tar!\\xe4/\\xe9.jpg": b"1", "latin.tar!\\xfc.jpg": b"2"}
    assert set(corpus.labels(corpus.shards[0]).values()) == {"cat", None}


def test_a_sparse_member_is_rejected_whatever_it_claims(tmp_path: Path) -> None:
    sparse = pax(GNU__sparse__map="0,3", GNU__sparse__size=str(2**30), GNU__sparse__name="b.jpg")
    (tmp_path / "a.tar").write_bytes(IMAGE + sparse + block(b"x", b"3", body=b"abc") + END)
    assert read_all(listed(tmp_path, tmp_path / "a.tar", 100), 2**40) == {
        "a.tar!a.jpg": b"abc",
        "a.tar!b.jpg": "sparse member of a tar archive",
    }


def test_labels_that_no_file_may_hold_are_escaped(tmp_path: Path) -> None:
    about = json.dumps({"label": "\ud800"}).encode()
    deep = b'{"label": ' + b"[" * 10**5
    members = [block(n, b"%o" % len(d), body=d) for n, d in ((b"a.json", about), (b"b.json", deep))]
    (tmp_path / "a.tar").write_bytes(IMAGE + block(b"b.jpg", b"3", body=b"abc") + b"".join(members) + END)
    corpus = listed(tmp_path, tmp_path / "a.tar", 100)
    assert corpus.labels(corpus.shards[0]) == {"a.tar!a.jpg": "\\ud800", "a.tar!b.jpg": None}


@pytest.mark.parametrize(
    "table", [{"image": [b"x"] * 50, "label": ["a"] * 50}, {"uri": [f"{i}.jpg" for i in range(50)]}]
)
@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "magic only", "page"])
def test_a_damaged_parquet_file_is_refused_by_name(tmp_path: Path, table: dict[str, list[object]], damage: str) -> None:
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table(table), path, compression="snappy", use_dictionary=False)
    whole = path.read_bytes()
    page = whole.index(b"a" if "label" in table else b"0.jpg")
    bad = {
        "empty": b"",
        "garbage": bytes(range(256)) * 9,
        "cut": whole[: len(whole) // 2],
        "magic only": b"PAR1PAR1",
        "page": whole[: max(4, page - 40)] + b"\xff" * 80 + whole[page + 40 :],
    }
    path.write_bytes(bad[damage])
    with pytest.raises(ConfigError, match=r"bad\.parquet") as error:
        listed(tmp_path, tmp_path / "bad.parquet", 100)
    assert "\n" not in str(error.value)


def test_every_parquet_file_needs_image_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"number": [1]}), tmp_path / "in" / "b.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet' has no column of image bytes among .* number \(int64\); add"):
        listed(tmp_path, tmp_path / "in", 100)


def test_a_parquet_file_whose_images_are_damaged_is_named(tmp_path: Path) -> None:
    rng = random.Random(0)
    pq.write_table(pa.table({"image": [rng.randbytes(500)] * 9}), tmp_path / "a.parquet", use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:60] = bytes(56)
    (tmp_path / "a.parquet").write_bytes(data)
    corpus = listed(tmp_path, tmp_path / "a.parquet", 100)
    with pytest.raises(JobError, match=r"a\.parquet|cannot be read"):
        read_all(corpus)


@pytest.mark.parametrize("struct", [False, True])
def test_a_value_that_stands_in_many_rows_is_in_memory_once(tmp_path: Path, struct: bool) -> None:
    """A file of some kilobytes, 300 rows of the same 4 MB: 1.2 GB if they were read together."""
    blob, small = bytes(2**22), b"small"
    values = [small, *[blob] * 300, None, small]
    image = [v and {"bytes": v, "path": None} for v in values] if struct else values
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    before, fs = pa.default_memory_pool().max_memory(), pafs.LocalFileSystem()
    found = archives.read_parquet(fs, str(tmp_path / "a.parquet"), [0, 300, 301, 302, 9999], 2**21)
    assert list(found) == [small, "more than 2097152 bytes", "no bytes in this row", small, "missing row"]
    assert list(archives.read_parquet(fs, str(tmp_path / "a.parquet"), [300], 2**22)) == [blob]
    assert pa.default_memory_pool().max_memory() - before < 10 * 2**22


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_shards_hold_whole_groups_where_these_are_not_too_large(size: int) -> None:
    rng = random.Random(size)
    for _ in range(200):
        groups = [rng.choice([0, 1, 3, 7, 50, 130]) for _ in range(rng.randrange(9))]
        cuts = list(archives.cut(groups, size))
        assert [i for first, length in cuts for i in range(first, first + length)] == list(range(sum(groups)))
        assert all(0 < length <= size for _, length in cuts)
        starts = [sum(groups[:i]) for i in range(len(groups) + 1)]
        for first, length in cuts:
            within = [i for i, n in enumerate(groups) if starts[i] < first + length and first < starts[i] + n]
            if len(within) > 1:  # several groups: whole, but for the rest of one that is larger than a shard
                assert first + length in starts
                assert first in starts or groups[within[0]] > size
        small = all(n <= size for n in groups)
        assert not small or all(
            length + groups[starts.index(first + length)] > size
            for first, length in cuts[:-1]
            if groups[starts.index(first + length)]
        )


def hugging_face(path: Path, column: str, numbers: Sequence[float | None], names: list[str]) -> Path:
    """A Parquet file as Hugging Face's datasets writes it."""
    features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    images = [{"bytes": b"x", "path": f"{i}.png"} for i in range(len(numbers))]
    pq.write_table(pa.table({"image": images, column: numbers}).replace_schema_metadata(about), path)
    return path


@pytest.mark.parametrize("column", ["label", "labels", "fine_label"])
def test_names_of_class_numbers_are_labels(tmp_path: Path, column: str) -> None:
    path = hugging_face(tmp_path / "a.parquet", column, [2, 0, None, -1, 1, 9], ["dog", "cat", "owl"])
    assert list(labels(listed(tmp_path, path)).values()) == ["owl", "dog", None, None, "cat", "9"]


def test_class_numbers_in_a_column_of_floats_have_their_names(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "a.parquet", "label", [2.0, math.nan, 0.0, -1.0], ["dog", "cat", "owl"])
    assert list(labels(listed(tmp_path, path)).values()) == ["owl", None, "dog", None]


@pytest.mark.parametrize("about", ["no json", "[]", '{"info": {"features": {"label": {"names": 3}}}}', '{"info": 1}'])
def test_metadata_without_names_leave_numbers(tmp_path: Path, about: str) -> None:
    table = pa.table({"image": [b"x", b"y"], "label": [1, 0]}).replace_schema_metadata({"huggingface": about})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(labels(listed(tmp_path, tmp_path / "a.parquet")).values()) == ["1", "0"]


def test_columns_of_lists_and_structs_are_no_labels(tmp_path: Path) -> None:
    columns = {"image": [b"x"], "label": [[1, 2]], "class": [{"a": 1}], "cls": ["cat"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert list(labels(listed(tmp_path, tmp_path / "a.parquet")).values()) == ["cat"]


def test_a_column_of_bytes_without_any_is_refused_before_work(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"'image' of .*a\.parquet' holds no bytes in any row, perhaps only paths"):
        listed(tmp_path, tmp_path / "a.parquet")
    mixed = [*rows, {"bytes": b"x", "path": None}]
    pq.write_table(pa.table({"image": pa.array(mixed, kind)}), tmp_path / "b.parquet")
    assert list(read_all(listed(tmp_path, tmp_path / "b.parquet")).values()) == ["no bytes in this row"] * 2 + [b"x"]
