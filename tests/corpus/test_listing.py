"""Listings: links that lead back, folders of results beside the images, and a count of what is left out."""

from __future__ import annotations

import http.server
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import listed, read_all, write_files
from fsspec.implementations.memory import MemoryFileSystem
from s3_server import S3Server

from upl_ray.config.settings import Source
from upl_ray.corpus import listing
from upl_ray.corpus.find import find
from upl_ray.corpus.listing import LISTED, RESULTS, file_version, list_files
from upl_ray.corpus.shards import list_corpus
from upl_ray.errors import ConfigError
from upl_ray.storage.store import Store

PAIR = {"cat/a.jpg": b"1", "dog/b.jpg": b"2"}

# Place of a link -> its target; the links that are left out, and the files that count beside the pair.
LINKS: dict[str, tuple[dict[str, str], set[str], set[str]]] = {
    "the folder itself": ({"up": "."}, {"up"}, set()),
    "the folder above": ({"cat/up": ".."}, {"cat/up"}, set()),
    "two above": ({"cat/up": "..", "dog/up": ".."}, {"cat/up", "dog/up"}, set()),
    "far above": ({"cat/root": "/"}, {"cat/root"}, set()),
    "a folder beside": ({"also": "cat"}, {"also"}, set()),
    "two folders into each other": ({"cat/dog": "../dog", "dog/cat": "../cat"}, {"cat/dog", "dog/cat"}, set()),
    "a file beside": ({"dog/a.jpg": "../cat/a.jpg"}, {"dog/a.jpg"}, set()),
    "elsewhere": ({"far": "../far"}, set(), {"far/c.jpg", "far/deep/d.jpg"}),
    "elsewhere twice": ({"far": "../far", "near": "../far"}, {"near"}, {"far/c.jpg", "far/deep/d.jpg"}),
    "a part, then the whole": (
        {"a": "../far/deep", "b": "../far"},
        {"b/deep"},
        {"a/d.jpg", "b/c.jpg"},
    ),
    "a part of elsewhere with a link up": ({"part": "../back/part"}, {"part/up"}, {"part/f.jpg"}),
    "back from elsewhere": ({"x": "../back"}, {"x/home", "x/top", "x/part/up"}, {"x/e.jpg", "x/part/f.jpg"}),
    "a file elsewhere twice": ({"c1.jpg": "../far/c.jpg", "c2.jpg": "../far/c.jpg"}, {"c2.jpg"}, {"c1.jpg"}),
    "a file of a linked folder": (
        {"c.jpg": "../far/c.jpg", "far": "../far"},
        {"c.jpg"},
        {"far/c.jpg", "far/deep/d.jpg"},
    ),
    "a hidden file": ({"h.jpg": ".cache/h.jpg"}, set(), {"h.jpg"}),
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two images, and others beside it."""
    write_files(tmp_path / "images", {**PAIR, ".cache/h.jpg": b"3"})
    write_files(tmp_path, {"far/c.jpg": b"4", "far/deep/d.jpg": b"5", "back/e.jpg": b"6"})
    write_files(tmp_path, {"back/part/f.jpg": b"7"})
    (tmp_path / "back" / "part" / "up").symlink_to("..")
    (tmp_path / "back" / "home").symlink_to(tmp_path / "images")
    (tmp_path / "back" / "top").symlink_to(tmp_path / "back")
    return tmp_path / "images"


@pytest.mark.parametrize("case", LINKS)
def test_each_folder_and_file_is_listed_once_whatever_links_lead_to_it(images: Path, case: str) -> None:
    links, left_out, more = LINKS[case]
    for place, target in links.items():
        (images / place).symlink_to(target)
    found = find(str(images))
    assert set(found.files) == PAIR.keys() | more
    assert dict(found.left_out.counts) == ({LISTED: len(left_out)} if left_out else {})
    assert set(found.left_out.examples.values()) <= left_out


def test_links_into_a_store_that_names_files_by_their_content_count(tmp_path: Path) -> None:
    """As the cache of Hugging Face's hub has them."""
    write_files(tmp_path, {"blobs/3f2a": b"1", "blobs/77c0": b"2"})
    links = {"snapshots/ab/cat/a.jpg": "3f2a", "snapshots/ab/dog/b.jpg": "77c0", "snapshots/cd/cat/a.jpg": "3f2a"}
    for link, blob in links.items():
        (tmp_path / link).parent.mkdir(parents=True)
        (tmp_path / link).symlink_to(f"../../../blobs/{blob}")
    found = find(str(tmp_path))
    assert set(found.files) == {"snapshots/ab/cat/a.jpg", "snapshots/ab/dog/b.jpg"}
    assert dict(found.left_out.counts) == {LISTED: 1, "without suffix": 2}


def test_a_web_of_links_comes_to_an_end(tmp_path: Path) -> None:
    """Followed blindly, twelve folders with links to each other are 12! paths."""
    for i, j in itertools.product(range(12), repeat=2):
        write_files(tmp_path, {f"{i}/{i}.jpg": b""})
        (tmp_path / f"{i}/to{j}").symlink_to(tmp_path / str(j))
    assert set(list_files(str(tmp_path)).files) == {f"{i}/{i}.jpg" for i in range(12)}


def test_a_pattern_counts_links_to_files_that_it_does_not_choose(images: Path) -> None:
    write_files(images, {"all/c.jpg": b"1"})
    (images / "cat" / "c.jpg").symlink_to("../all/c.jpg")
    assert set(find(f"{images}/c*/*.jpg").files) == {"cat/a.jpg", "cat/c.jpg"}


def test_a_listing_is_stopped_by_a_signal(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{i}/{j}.jpg": b"" for i in range(40) for j in range(40)})
    program = (
        "import signal, sys; from upl_ray.corpus.listing import list_files\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('ready', flush=True)\n"
        "while True: list_files(sys.argv[1])"
    )
    job = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGTERM)
    assert job.wait(10) == 7


def test_versions_of_a_listing_are_those_of_single_files(images: Path) -> None:
    (images / "far").symlink_to("../far")
    files = list_files(str(images)).files
    assert files == {f: file_version(str(images / f)) for f in files}
    assert len(files) == 4


def test_files_that_do_not_count_are_counted_by_suffix_and_named(images: Path) -> None:
    others = ("a.heic", "cat/b.HEIC", "dog/c.txt", "README", "x.tar.gz")
    write_files(images, dict.fromkeys(others, b""))
    (images / "dead.jpg").symlink_to("nowhere.jpg")
    (images / "ring.jpg").symlink_to("ring.jpg")
    (images / "broken").symlink_to("cat/a.jpg/x")
    os.mkfifo(images / "pipe.jpg")
    (Path(os.fsdecode(os.fsencode(images) + b"/caf\xe9.jpg"))).write_bytes(b"")
    (Path(os.fsdecode(os.fsencode(images) + b"/\xfc"))).mkdir()
    left_out = find(str(images)).left_out
    assert dict(left_out.counts) == {
        ".heic": 2,
        ".txt": 1,
        "without suffix": 1,
        ".gz": 1,
        "dangling link": 3,
        "pipe, socket or device": 1,
        "name that is not UTF-8": 2,
    }
    assert left_out.examples[".txt"] == "dog/c.txt"
    assert left_out.examples["name that is not UTF-8"] in (r"caf\xe9.jpg", r"\xfc")
    assert str(left_out).startswith("3 x dangling link (")
    assert dict(find(f"{images}/cat/*").left_out.counts) == {".heic": 1}


SYSTEMS = (
    *("cat/@eaDir/a.jpg/THUMB_XL.jpg", "$RECYCLE.BIN/S-1-5-21/$R1.jpg", "__MACOSX/cat/._a.jpg", "lost+found/x.jpg"),
    *("cat/$Recycle.Bin/$R1.jpg", "@Recycle/x.jpg", "@Recently-Snapshot/y/x.jpg", "~snapshot/x.jpg", "FOUND.000/x.jpg"),
    *("RECYCLER/S-1-5/Dc1.jpg", "Network Trash Folder/x.jpg", "appdata_oc7/preview/1/64-64.jpg", "@tmp/x.jpg"),
)


def test_folders_of_systems_are_left_out_and_counted(images: Path) -> None:
    before = find(str(images)).files
    write_files(images, dict.fromkeys(SYSTEMS, b""))
    found = find(str(images))
    assert found.files == before
    assert found.left_out.counts == {"folder of a system": len(SYSTEMS)}
    assert any(x.startswith(found.left_out.examples["folder of a system"]) for x in SYSTEMS)


def test_folders_of_systems_are_left_out_of_prefixes_too(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.create_bucket()
    write_files(tmp_path, dict.fromkeys(("cat/a.jpg", *SYSTEMS), b""))
    s3.upload(tmp_path, bucket, "in")
    found = find(f"s3://{bucket}/in")
    assert set(found.files) == {"cat/a.jpg"}
    assert found.left_out.counts == {"folder of a system": len(SYSTEMS)}


def test_a_corpus_counts_what_is_left_out_under_all_its_addresses(images: Path) -> None:
    write_files(images, {"cat/x.heic": b"", "dog/y.heic": b"", "dog/z.mp4": b""})
    corpus = listed(images.parent, (f"{images}/cat", f"{images}/dog"))
    assert dict(corpus.left_out.counts) == {".heic": 2, ".mp4": 1}
    assert str(corpus.left_out) in ("2 x .heic (x.heic), 1 x .mp4 (z.mp4)", "2 x .heic (y.heic), 1 x .mp4 (z.mp4)")


def test_a_folder_without_images_names_what_lies_there(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.heic": b"", "b.heic": b""})
    with pytest.raises(ConfigError, match=r"No image lies under .*, but 2 x \.heic \([ab]\.heic\); name files"):
        find(str(tmp_path))


def write_results(store: Store) -> None:
    """Files of the kinds that jobs leave in their storage."""
    store.write("report/charts/confusion.png", b"a chart")
    store.write("report/figures/cat.jpg", b"a thumbnail")
    store.write_table("predictions-0123456789ab/part.parquet", pa.table({"image_id": ["x"]}))


@pytest.mark.parametrize("address", ["", "/**/*", "/**/*.{jpg,png}"])
def test_results_inside_of_the_images_folder_are_no_images(tmp_path: Path, address: str) -> None:
    write_files(tmp_path, PAIR)
    for name in ("run", "deep/er/run", "linked"):  # earlier storages beside the run's own count no more
        if name == "linked":
            (tmp_path / "linked").symlink_to(tmp_path / "run")
        store, source = Store(f"{tmp_path}/{name}"), Source(uri=f"{tmp_path}{address}")
        first = list_corpus(store, source, 10)
        write_results(store)
        second = list_corpus(store, source, 10)
        assert read_all(first) == read_all(second) == PAIR
        assert second.added == 0
    assert second.left_out.counts[RESULTS] == 2


def test_a_folder_that_only_resembles_results_is_listed(tmp_path: Path) -> None:
    write_files(tmp_path, {"data/corpus-1/manifest.json": b"{}", "data/corpus-1/a.jpg": b"a"})
    assert set(find(str(tmp_path)).files) == {"data/corpus-1/a.jpg"}


def test_a_killed_first_run_leaves_no_images_either(tmp_path: Path) -> None:
    """Before the corpus is written, the storage holds the index of its archives: Parquet files, too."""
    pq.write_table(pa.table({"image": [b"x", b"y"]}), tmp_path / "a.parquet")
    store = Store(f"{tmp_path}/run")
    store.write_table("archives-0123456789ab/shards/x.parquet", pa.table({"image_id": ["x"]}))
    corpus = list_corpus(store, Source(uri=str(tmp_path)), 10)
    assert read_all(corpus) == {"a.parquet!0": b"x", "a.parquet!1": b"y"}


def test_results_inside_of_the_images_prefix_are_no_images(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.create_bucket()
    write_files(tmp_path, PAIR)
    s3.upload(tmp_path, bucket, "in")
    for scheme in ("s3", "s3a"):
        store, source = Store(f"{scheme}://{bucket}/in/run"), Source(uri=f"s3://{bucket}/in")
        first = list_corpus(store, source, 10)
        write_results(store)
        second = list_corpus(store, source, 10)
        assert read_all(first) == read_all(second) == PAIR
        assert dict(second.left_out.counts) == {RESULTS: 1}
    with pytest.raises(ConfigError, match="is the folder of the images"):
        list_corpus(Store(f"s3://{bucket}/in"), source, 10)


def test_storage_that_is_the_images_folder_itself_is_refused_in_the_first_run(tmp_path: Path) -> None:
    write_files(tmp_path, {**PAIR, "c.jpg": b"3"})
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    for storage in (str(tmp_path), f"{tmp_path}-link"):
        for pattern in ("", "/**/*.jpg"):
            with pytest.raises(ConfigError, match=r"storage_path .* is the folder of the images .* give storage_path"):
                list_corpus(Store(storage), Source(uri=f"{tmp_path}{pattern}"), 10)
    assert list_corpus(Store(str(tmp_path)), Source(uri=f"{tmp_path}/*.jpg"), 10).images == 1  # results lie deeper
    assert list_corpus(Store(str(tmp_path)), Source(uri=f"{tmp_path}/cat"), 10).images == 1


def test_storage_that_holds_images_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {**PAIR, "fox/deep/c.JPG": b"3"})
    for storage, name in (("cat", "cat/a.jpg"), ("fox", "fox/deep/c.JPG")):
        with pytest.raises(ConfigError, match=f"storage_path '.*/{storage}' holds images, such as '{name}'; give"):
            list_corpus(Store(f"{tmp_path}/{storage}"), Source(uri=str(tmp_path)), 10)
    beside = Source(uri=f"{tmp_path}/[cd]*/*.jpg")  # a pattern that does not reach it
    assert list_corpus(Store(f"{tmp_path}/fox"), beside, 10).images == 2
    assert list_corpus(Store(f"{tmp_path}/fox"), Source(uri=str(tmp_path)), 10).images == 2  # it holds a run now


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server that shows folders as pages of links."""
    write_files(tmp_path / "web", {"folder/a.jpg": b"1"})

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.parametrize("place", ["folder/", "folder", "folder/*.jpg", "nothing/", ""])
def test_a_folder_of_a_web_server_is_refused_in_one_sentence(web: str, place: str) -> None:
    with pytest.raises(ConfigError, match=r"A web server lists no folders, .* name its files in a manifest.*\.$"):
        find(f"{web}/{place}")
    assert set(find(f"{web}/folder/a.jpg").files) == {"a.jpg"}


def test_a_parquet_file_of_a_web_server_without_ranges_is_refused_in_one_sentence(web: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [bytes(10**5)] * 9}), tmp_path / "web" / "a.parquet", compression="none")
    with pytest.raises(
        ConfigError, match=r"a\.parquet cannot be read in parts \(.*range requests.*; copy it to another"
    ):
        list_corpus(Store(f"{tmp_path}/run"), Source(uri=f"{web}/a.parquet"), 10)


class ConnectError(Exception):
    """As httpx raises: no OSError."""


@pytest.mark.parametrize("address", ["memory://bucket/x", "memory://bucket/x.parquet"])
def test_errors_of_the_libraries_behind_an_address_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """`hf://` without a network raises an error of httpx."""

    def unreachable(*args: object, **options: object) -> None:
        raise ConnectError("[Errno -2] Name or service not known")

    for name in ("find", "info"):
        monkeypatch.setattr(MemoryFileSystem, name, unreachable)
    with pytest.raises(ConfigError, match=r"cannot be listed \(ConnectError: \[Errno -2\] Name or service not known"):
        find(address)


def test_names_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_files(tmp_path, {"Brötchen/ä.jpg": b""})
    program = "import sys; from upl_ray.corpus.listing import list_files; print(ascii(list_files(sys.argv[1]).files))"
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", program, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert r"Br\xf6tchen/\xe4.jpg" in done.stdout


def test_reasons_in_a_log_line_are_bounded() -> None:
    left_out = listing.LeftOut()
    listing.count_suffixes((f"a.{i:03d}" for i in range(100)), left_out)
    assert str(left_out).endswith("92 other suffixes")
