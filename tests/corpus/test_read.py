"""Bytes of listed images: a fault of an image is a reason to reject it, a fault of the access stops the job."""

from __future__ import annotations

import http.server
import io
import random
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import contents, listed, read_all, write_files, write_tar
from s3_server import S3Server

from upl_ray.corpus import archives
from upl_ray.corpus import read as reading
from upl_ray.corpus.read import read_images
from upl_ray.errors import JobError
from upl_ray.storage import schema
from upl_ray.upl import rejection


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


@pytest.mark.parametrize("form", ["files", "tar", "parquet"])
def test_every_byte_of_a_corpus_is_read_once(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """What S3 sends while a corpus is listed, then read a shard after the other; the bounds of benchmarks/README.md."""
    monkeypatch.setattr(archives, "PIECE", 2**17)
    rng, bucket = random.Random(0), s3.create_bucket()
    images = {f"{i:03d}.jpg": rng.randbytes(rng.choice([2000, 9000, 30_000])) for i in range(400)}
    if form == "tar":
        write_tar(tmp_path / "in" / "a.tar", images)
    elif form == "parquet":
        (tmp_path / "in").mkdir()
        table = pa.table({"image": list(images.values()), "label": ["some label"] * 400, "text": ["x" * 2000] * 400})
        pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=100)
    else:
        write_files(tmp_path / "in", images)
    s3.upload(tmp_path / "in", bucket, "in")
    corpus = listed(tmp_path, f"s3://{bucket}/in", 250)
    assert [s.rows for s in corpus.shards] == ([200, 200] if form == "parquet" else [250, 150])
    before = len(s3.requests(bucket))
    found = [data for s in corpus.shards for data in reading.read_each(s.root, corpus.listing(s))]
    assert found == list(images.values())
    asked = [r for r in s3.requests(bucket, before) if r.kind == "GET"]
    share = sum(r.length for r in asked) / sum(map(len, images.values()))
    assert share < 1.1
    assert len(asked) <= (400 if form == "files" else 120)
    first = sum(r.length for r in s3.requests(bucket) if r.kind == "GET")
    assert first / sum(map(len, images.values())) < (2.1 if form == "tar" else 1.1)
    before = len(s3.requests(bucket))
    assert listed(tmp_path, f"s3://{bucket}/in", 250).shards == corpus.shards
    again = [r for r in s3.requests(bucket, before) if r.kind == "GET"]  # is this Parquet one of images, or of names?
    assert len(again) <= (3 if form == "parquet" else 0)
    assert sum(r.length for r in again) < 10**5


def test_every_key_is_listed_as_it_is_and_one_that_no_client_opens_is_rejected(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.create_bucket()
    good = ["c d.jpg", "ü#b.jpg", "x%20y.jpg", "x+y.jpg", "q?.jpg", "back\\slash.jpg", "tail /x.jpg", "e\u0301.jpg"]
    bad = ["a//b.jpg", "z/./dot.jpg", "z/../up.jpg"]
    for key in [*good, *bad]:
        s3.client().put_object(Bucket=bucket, Key=f"p/{key}", Body=key.encode())
    found = read_all(listed(tmp_path, f"s3://{bucket}/p"))
    assert found == {k: k.encode() for k in good} | dict.fromkeys(bad, rejection.NO_NAME)
    named = pa.Table.from_pylist([{"image_id": k, "version": "1-1", "file": k} for k in bad], schema=schema.LISTING)
    assert read_images(f"s3://{bucket}/p", named) == [rejection.NO_NAME] * 3


@pytest.mark.parametrize("size", [1000, 10**5])  # the client does not always name the reason
def test_an_object_that_must_be_restored_first_is_named(s3: S3Server, tmp_path: Path, size: int) -> None:
    bucket = s3.create_bucket()
    for key, storage in (("p/a.jpg", "STANDARD"), ("p/b.jpg", "GLACIER")):
        s3.client().put_object(Bucket=bucket, Key=key, Body=bytes(size), StorageClass=storage)
    with pytest.raises(
        JobError, match=rf"cannot be read now \({bucket}/p/b\.jpg: AWS .*lies in Glacier and must be rest"
    ):
        read_all(listed(tmp_path, f"s3://{bucket}/p"))


def test_a_key_that_begins_with_a_slash_is_left_out_and_counted(s3: S3Server, tmp_path: Path) -> None:
    """To pyarrow `p//a.jpg` is `p/a.jpg`, which is another object."""
    bucket = s3.create_bucket()
    for key in ("p/a.jpg", "p//a.jpg", "p//b.tar"):
        s3.client().put_object(Bucket=bucket, Key=key, Body=key.encode())
    corpus = listed(tmp_path, f"s3://{bucket}/p")
    assert read_all(corpus) == {"a.jpg": b"p/a.jpg"}
    assert dict(corpus.left_out.counts) == {"name that begins with a slash": 2}


def test_an_archive_that_changed_since_it_was_listed_stops_the_job(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", contents(10))
    corpus = listed(tmp_path, tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", contents(50, 1))
    with pytest.raises(JobError, match="has changed since it was listed"):
        read_all(corpus)


def read_files(root: Path, files: list[str]) -> list[bytes | str]:
    rows = [{"image_id": f, "version": "1-1", "file": f} for f in files]
    return read_images(str(root), pa.Table.from_pylist(rows, schema=schema.LISTING))


def test_images_are_read_in_order_and_a_missing_one_has_a_reason(tmp_path: Path) -> None:
    files = contents(20)
    write_files(tmp_path, files)
    (tmp_path / list(files)[4]).unlink()
    expected = ["missing file" if i == 4 else data for i, data in enumerate(files.values())]
    assert read_files(tmp_path, list(files)) == expected


def test_a_folder_that_is_absent_on_this_machine_is_no_reason_to_reject_its_images(tmp_path: Path) -> None:
    (tmp_path / "mount point").mkdir()
    for folder in ("not mounted here", "mount point"):
        with pytest.raises(JobError, match=r"None of 2 listed images is found under .* every node must reach"):
            read_files(tmp_path / folder, ["a.jpg", "b.jpg"])
    write_files(tmp_path / "mount point", {"c.jpg": b"x"})
    assert read_files(tmp_path / "mount point", ["a.jpg", "b.jpg"]) == ["missing file"] * 2


def test_links_in_an_image_folder_are_followed(tmp_path: Path) -> None:
    write_files(tmp_path, {"elsewhere/x.jpg": b"far", "other/y.jpg": b"one", "images/a.jpg": b"near"})
    (tmp_path / "images" / "file.jpg").symlink_to(tmp_path / "other" / "y.jpg")
    (tmp_path / "images" / "folder").symlink_to(tmp_path / "elsewhere")
    corpus = listed(tmp_path, tmp_path / "images")
    assert read_all(corpus) == {"a.jpg": b"near", "file.jpg": b"one", "folder/x.jpg": b"far"}


class Handler(http.server.BaseHTTPRequestHandler):
    """`/404/x.jpg` is answered with that status; `/none/` without a length, `/cut/` with half of the bytes.

    Parts are given of every file but `whole.tar`.
    """

    status: int | None = None  # of every answer, if the whole server fails

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        status = type(self).status or (int(kind) if kind.isdigit() else 200)
        body = archive() if kind == "tar" else b"bytes" * 10
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and status == 200 and not self.path.endswith("whole.tar"):
            status, body = 206, body[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(status)
        if kind != "none":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: 20 if kind == "cut" else len(body)])

    do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

    def log_message(self, *args: object) -> None:
        pass


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    return file.getvalue()


@pytest.fixture
def server() -> Iterator[str]:
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_address[1]}"
    Handler.status = None
    web.shutdown()
    web.server_close()


def read_web(tmp_path: Path, server: str, *names: str, max_bytes: int = 1000) -> dict[str, bytes | str]:
    (tmp_path / "m.txt").write_text("".join(f"{server}/{name}\n" for name in names))
    found = read_all(listed(tmp_path, tmp_path / "m.txt", roots=(server,)), max_bytes)
    return {i.removeprefix(f"{server}/"): data for i, data in found.items()}


def test_a_server_s_answer_about_a_file_is_a_reason(tmp_path: Path, server: str) -> None:
    names = ("200/a.jpg", "404/b.jpg", "410/c.jpg", "none/d.jpg", "200/%25 ä?x=1.jpg")
    whole = b"bytes" * 10
    assert read_web(tmp_path, server, *names) == dict(
        zip(names, [whole, "missing file", "missing file", whole, whole], strict=True)
    )
    large = "more than 49 bytes"
    names = ("200/a.jpg", "none/d.jpg")
    assert read_web(tmp_path, server, *names, max_bytes=49) == dict.fromkeys(names, large)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("401/x.jpg", r"no permission .*401.*run the job again"),
        ("403/x.jpg", r"no permission .*403.*run the job again"),
        ("429/x.jpg", r"cannot be read now .*429.*run the job again"),
        ("500/x.jpg", r"cannot be read now .*500.*run the job again"),
        ("503/x.jpg", r"cannot be read now .*503.*run the job again"),
        ("cut/x.jpg", r"cannot be read now .*run the job again"),
    ],
)
def test_a_server_s_failure_stops_the_job(tmp_path: Path, server: str, name: str, match: str) -> None:
    with pytest.raises(JobError, match=match):
        read_web(tmp_path, server, "200/fine.jpg", name)


def test_a_server_that_is_gone_stops_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read now"):
        read_web(tmp_path, "http://127.0.0.1:9", "a.jpg")


def test_an_archive_on_a_server_that_fails_is_not_missing(tmp_path: Path, server: str) -> None:
    corpus = listed(tmp_path, f"{server}/tar/a.tar")
    (shard,) = corpus.shards
    listing = corpus.listing(shard)
    assert read_images(shard.root, listing) == [b"abc"]
    other = listed(tmp_path, f"{server}/tar/whole.tar")
    with pytest.raises(JobError, match=r"cannot be read in parts.*support range requests"):
        read_all(other)
    for status, match in ((503, "cannot be read now"), (403, "no permission"), (404, "is not found under")):
        Handler.status = status
        with pytest.raises(JobError, match=match):
            read_images(shard.root, listing)
