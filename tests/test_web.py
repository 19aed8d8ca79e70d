"""Images on a web server: what it says of a file, and what it says of itself."""

from __future__ import annotations

import http.server
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from upl_ray.artifacts import Store
from upl_ray.config import JobError, Source
from upl_ray.corpus import list_corpus
from upl_ray.reading import read_images


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


def read(tmp_path: Path, server: str, *names: str, max_bytes: int = 1000) -> dict[str, bytes | str]:
    (tmp_path / "m.txt").write_text("".join(f"{server}/{name}\n" for name in names))
    corpus = list_corpus(Store(str(tmp_path / f"{max_bytes}")), Source(uri=str(tmp_path / "m.txt"), roots=(server,)), 9)
    (shard,) = corpus.shards
    listing = corpus.listing(shard)
    ids = [i.removeprefix(f"{server}/") for i in listing["image_id"].to_pylist()]
    return dict(zip(ids, read_images(shard.root, listing, max_bytes), strict=True))


def test_what_a_server_says_of_a_file_is_a_reason(tmp_path: Path, server: str) -> None:
    names = ("200/a.jpg", "404/b.jpg", "410/c.jpg", "none/d.jpg", "200/%25 ä?x=1.jpg")
    whole = b"bytes" * 10
    assert read(tmp_path, server, *names) == dict(
        zip(names, [whole, "missing file", "missing file", whole, whole], strict=True)
    )
    large = "more than 49 bytes"
    assert read(tmp_path, server, "200/a.jpg", "none/d.jpg", max_bytes=49) == {"200/a.jpg": large, "none/d.jpg": large}


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
def test_what_it_says_of_itself_stops_the_job(tmp_path: Path, server: str, name: str, match: str) -> None:
    with pytest.raises(JobError, match=match):
        read(tmp_path, server, "200/fine.jpg", name)


def test_a_server_that_is_gone_stops_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read now"):
        read(tmp_path, "http://127.0.0.1:9", "a.jpg")


def test_an_archive_on_a_server_that_fails_is_not_missing(tmp_path: Path, server: str) -> None:
    corpus = list_corpus(Store(str(tmp_path / "run")), Source(uri=f"{server}/tar/a.tar"), 9)
    (shard,) = corpus.shards
    listing = corpus.listing(shard)
    assert read_images(shard.root, listing) == [b"abc"]
    other = list_corpus(Store(str(tmp_path / "other")), Source(uri=f"{server}/tar/whole.tar"), 9)
    with pytest.raises(JobError, match=r"cannot be read in parts.*support range requests"):
        read_images(other.shards[0].root, other.listing(other.shards[0]))
    for status, match in ((503, "cannot be read now"), (403, "no permission"), (404, "is not found under")):
        Handler.status = status
        with pytest.raises(JobError, match=match):
            read_images(shard.root, listing)
