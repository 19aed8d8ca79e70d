"""Archives and manifests that are damaged or made to do harm: one sentence with the file's name, before work starts."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from upl_ray import archives
from upl_ray.artifacts import Store
from upl_ray.config import ConfigError, JobError, Source
from upl_ray.corpus import Corpus, list_corpus
from upl_ray.reading import read_images


def listed(tmp_path: Path, name: str) -> Corpus:
    return list_corpus(Store(str(tmp_path / "run")), Source(uri=str(tmp_path / name)), 100)


def read(corpus: Corpus, max_bytes: int = 10**6) -> dict[str, bytes | str]:
    (shard,) = corpus.shards
    listing = corpus.listing(shard)
    return dict(zip(listing["image_id"].to_pylist(), read_images(shard.root, listing, max_bytes), strict=True))


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
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_tar_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bad.tar").write_bytes(DAMAGED[kind])
    with pytest.raises(ConfigError, match=r"bad\.tar") as error:
        listed(tmp_path, "bad.tar")
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
    corpus = listed(tmp_path, "latin.tar")
    assert read(corpus) == {"latin.tar!\\xe4/\\xe9.jpg": b"1", "latin.tar!\\xfc.jpg": b"2"}
    assert set(corpus.labels(corpus.shards[0]).values()) == {"cat", None}


def test_a_sparse_member_is_rejected_whatever_it_claims(tmp_path: Path) -> None:
    sparse = pax(GNU__sparse__map="0,3", GNU__sparse__size=str(2**30), GNU__sparse__name="b.jpg")
    (tmp_path / "a.tar").write_bytes(IMAGE + sparse + block(b"x", b"3", body=b"abc") + END)
    assert read(listed(tmp_path, "a.tar"), 2**40) == {
        "a.tar!a.jpg": b"abc",
        "a.tar!b.jpg": "sparse member of a tar archive",
    }


def test_labels_that_no_file_may_hold_are_escaped(tmp_path: Path) -> None:
    about = json.dumps({"label": "\ud800"}).encode()
    deep = b'{"label": ' + b"[" * 10**5
    members = [block(n, b"%o" % len(d), body=d) for n, d in ((b"a.json", about), (b"b.json", deep))]
    (tmp_path / "a.tar").write_bytes(IMAGE + block(b"b.jpg", b"3", body=b"abc") + b"".join(members) + END)
    corpus = listed(tmp_path, "a.tar")
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
        listed(tmp_path, "bad.parquet")
    assert "\n" not in str(error.value)


def test_every_parquet_file_needs_image_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"number": [1]}), tmp_path / "in" / "b.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet' has no column of image bytes .* its columns are number"):
        listed(tmp_path, "in")


def test_a_parquet_file_whose_images_are_damaged_is_named(tmp_path: Path) -> None:
    rng = random.Random(0)
    pq.write_table(pa.table({"image": [rng.randbytes(500)] * 9}), tmp_path / "a.parquet", use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:60] = bytes(56)
    (tmp_path / "a.parquet").write_bytes(data)
    corpus = listed(tmp_path, "a.parquet")
    with pytest.raises(JobError, match=r"a\.parquet|cannot be read"):
        read(corpus)


@pytest.mark.parametrize(
    "line", ['{"uri": "\\ud800.jpg"}', '{"uri": "a.jpg", "label": "\\udfff"}', "[" * 10**5, '{"uri": ' + "[" * 10**5]
)
def test_lines_of_a_manifest_that_cannot_be_read_are_refused_by_name(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text('{"uri": "b.jpg"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"m\.jsonl.*cannot be read"):
        listed(tmp_path, "m.jsonl")


@pytest.mark.parametrize("struct", [False, True])
def test_a_value_that_stands_in_many_rows_is_in_memory_once(tmp_path: Path, struct: bool) -> None:
    """A file of some kilobytes, 300 rows of the same 4 MB: 1.2 GB if they were read together."""
    blob, small = bytes(2**22), b"small"
    values = [small, *[blob] * 300, None, small]
    image = [v and {"bytes": v, "path": None} for v in values] if struct else values
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    before, fs = pa.default_memory_pool().max_memory(), pafs.LocalFileSystem()
    found = archives.read_parquet(fs, str(tmp_path / "a.parquet"), [302, 0, 300, 301, 9999], 2**21)
    assert found == [small, small, "more than 2097152 bytes", "no bytes in this row", "missing row"]
    assert archives.read_parquet(fs, str(tmp_path / "a.parquet"), [300], 2**22) == [blob]
    assert pa.default_memory_pool().max_memory() - before < 10 * 2**22
