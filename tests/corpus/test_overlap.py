"""Held-out images must not be learned from, in whatever form two image sets name the same file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from corpora import write_files, write_tar
from s3_server import S3Server

from upl_ray.config.settings import Source
from upl_ray.corpus.overlap import ImageSet, check_apart, check_once
from upl_ray.corpus.shards import list_corpus
from upl_ray.errors import ConfigError, Damaged
from upl_ray.storage.store import Store

PHOTOS = {"cat/a.png": b"1", "dog/a.png": b"2", "sea/a.png": b"3"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_files(tmp_path / "photos", PHOTOS)
    return tmp_path / "photos"


def image_set(field: str, tmp_path: Path, uri: object, *roots: str) -> ImageSet:
    source = Source(uri=str(uri), roots=roots)
    return ImageSet(field, list_corpus(Store(str(tmp_path / "run")), source, 2), source.roots)


def write_manifest(tmp_path: Path, *names: str) -> Path:
    (tmp_path / "list.txt").write_text("\n".join(names))
    return tmp_path / "list.txt"


def test_a_shared_file_is_refused_in_every_form(photos: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "one.tar", {"a.png": b"1"})
    (tmp_path / "link").symlink_to(photos)
    manifest = write_manifest(tmp_path, f"{photos}/dog/a.png", f"file://{photos}/cat/a.png", f"{photos}//sea/a.png")
    roots = (str(photos), f"file://{photos}")
    cases = [  # corpus, scored, shared files of scored, an example
        (photos, photos / "cat", "1 of 1", f"{photos}/cat/a.png"),
        (photos / "*" / "*.png", photos / "cat", "1 of 1", f"{photos}/cat/a.png"),
        (photos / "cat", photos, "1 of 3", f"{photos}/cat/a.png"),
        (photos, f"file://{photos}", "3 of 3", f"{photos}/cat/a.png"),
        (photos, tmp_path / "link" / "dog", "1 of 1", f"{photos}/dog/a.png"),
        (photos, manifest, "3 of 3", f"{photos}/cat/a.png"),
        (manifest, photos, "3 of 3", f"{photos}/cat/a.png"),
        (tmp_path / "tars", tmp_path / "tars" / "one.tar", "1 of 1", f"{tmp_path}/tars/one.tar"),
    ]
    for corpus, scored, count, example in cases:
        sets = [image_set("corpus", tmp_path, corpus, *roots), image_set("scored", tmp_path, scored, *roots)]
        with pytest.raises(ConfigError) as error:
            check_apart(sets)
        assert f"{count} files of scored are files of corpus, too, for example {example!r}" in str(error.value)
        assert "Take them out of one of the two, or give their labels as corpus.labels" in str(error.value)


def test_a_bucket_has_several_names(s3: S3Server, photos: Path, tmp_path: Path) -> None:
    bucket = s3.create_bucket()
    s3.upload(photos, bucket, "in")
    sets = [image_set("corpus", tmp_path, f"s3://{bucket}/in"), image_set("scored", tmp_path, f"s3a://{bucket}/in/cat")]
    with pytest.raises(ConfigError, match="1 of 1 files of scored are files of corpus, too"):
        check_apart(sets)
    both = Source(uri=(f"s3://{bucket}/in", f"s3a://{bucket}/in"))
    with pytest.raises(ConfigError, match="3 files under two of its addresses"):
        check_once(ImageSet("corpus", list_corpus(Store(str(tmp_path / "run")), both, 2), ()))


def test_every_pair_of_sets_is_compared(photos: Path, tmp_path: Path) -> None:
    cat, dog, sea = (image_set(f, tmp_path, photos / f) for f in ("cat", "dog", "sea"))
    check_apart([cat, dog, sea])
    again = ImageSet("again", dog.corpus, ())
    with pytest.raises(ConfigError, match="1 of 1 files of again are files of dog, too"):
        check_apart([cat, dog, again])


def test_a_file_under_two_addresses_of_one_set_is_refused(photos: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "a.tar", {"1.png": b"1", "2.png": b"2", "3.png": b"3"})
    write_files(tmp_path / "other", {"x/b.png": b"4"})
    (tmp_path / "other" / "back").symlink_to(photos / "cat")
    manifest = write_manifest(tmp_path, f"{photos}/dog/a.png")
    doubled = {
        (photos, photos / "cat"): f"1 files under two of its addresses, for example '{photos}/cat/a.png'",
        (f"{photos}/*/a.png", f"{photos}/dog"): "1 files",
        (photos, tmp_path / "other"): f"'{photos}/cat/a.png'",
        (photos, manifest): f"'{photos}/dog/a.png'",
        (tmp_path / "tars", tmp_path / "tars" / "a.tar"): f"'{tmp_path}/tars/a.tar'",
        (f"{tmp_path}/**/*.tar", f"{tmp_path}/tars/*.tar"): f"'{tmp_path}/tars/a.tar'",
    }
    for number, (uris, words) in enumerate(doubled.items()):
        source = Source(uri=tuple(map(str, uris)), roots=(str(photos),))
        corpus = list_corpus(Store(str(tmp_path / f"run{number}")), source, 2)
        with pytest.raises(ConfigError, match=f"^corpus.uri names .*{re.escape(words)}"):
            check_once(ImageSet("corpus", corpus, source.roots))
    for uris in ((photos / "cat", photos / "dog"), (f"{photos}/c*/*", f"{photos}/d*/*"), (tmp_path / "tars", photos)):
        corpus = list_corpus(Store(str(tmp_path / "run")), Source(uri=tuple(map(str, uris))), 2)
        check_once(ImageSet("corpus", corpus, ()))


def test_ids_of_several_addresses_are_the_addresses_of_the_files(photos: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "a.tar", {"1.png": b"1"})
    uris = (f"{tmp_path}/tars/a.tar", f"{photos}/c*/*.png", f"{photos}/dog")
    corpus = list_corpus(Store(str(tmp_path / "run")), Source(uri=uris), 9)
    ids = [i for s in corpus.shards for i in corpus.listing(s)["image_id"].to_pylist()]
    assert ids == [f"{tmp_path}/tars/a.tar!1.png", f"{photos}/cat/a.png", f"{photos}/dog/a.png"]


def test_sets_beside_each_other_are_apart(photos: Path, tmp_path: Path) -> None:
    manifest = image_set("scored", tmp_path, write_manifest(tmp_path, f"{photos}/dog/a.png"), str(photos))
    check_apart([image_set("corpus", tmp_path, photos / "cat"), manifest])
    shutil.copytree(photos, tmp_path / "photos2")
    check_apart([image_set("corpus", tmp_path, photos), image_set("scored", tmp_path, tmp_path / "photos2")])


def test_a_removed_image_is_not_shared(photos: Path, tmp_path: Path) -> None:
    image_set("corpus", tmp_path, photos)
    (photos / "cat" / "a.png").rename(tmp_path / "cat.png")
    corpus = image_set("corpus", tmp_path, photos)
    (tmp_path / "cat.png").rename(photos / "cat" / "a.png")
    check_apart([corpus, image_set("scored", tmp_path, photos / "cat")])


def test_listings_are_read_only_where_folders_meet(photos: Path, tmp_path: Path) -> None:
    sets = [image_set(f, tmp_path, photos / f) for f in ("cat", "dog", "")]
    shutil.rmtree(tmp_path / "run")
    check_apart(sets[:2])
    with pytest.raises(Damaged):
        check_apart(sets)
