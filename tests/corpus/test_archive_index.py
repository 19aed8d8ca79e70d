"""The index of archives: each is read once, wherever it is named and whenever the job was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import contents, listed, read_all, write_tar
from s3_server import S3Server

from upl_ray.config.settings import Source
from upl_ray.corpus.shards import Corpus, list_corpus
from upl_ray.errors import ConfigError, Damaged
from upl_ray.storage.store import Store


class Killed(Exception):
    """The job ends here."""


def keys_read(s3: S3Server, bucket: str, first: int) -> set[str]:
    return {r.key for r in s3.requests(bucket, first) if r.kind == "GET" and r.key.endswith(".tar")}


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> str:
    name = s3.create_bucket()
    for i in range(5):
        write_tar(tmp_path / "in" / f"{i}.tar", contents(6, i))
    s3.upload(tmp_path / "in", name, "in")
    return name


def test_an_archive_is_read_once_for_its_index_under_any_pattern(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    some = listed(tmp_path, f"s3://{bucket}/in/{{0..2}}.tar")
    first = len(s3.requests(bucket))
    more = listed(tmp_path, f"s3://{bucket}/in/*.tar")
    assert keys_read(s3, bucket, first) == {"in/3.tar", "in/4.tar"}
    assert {s.id for s in some.shards} < {s.id for s in more.shards}
    assert more.added == 30
    assert read_all(more) == read_all(listed(tmp_path / "elsewhere", f"s3://{bucket}/in"))


def test_a_killed_listing_goes_on_behind_the_archives_that_it_committed(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    def killed_behind_two(archives: list[str], index: Callable[[str], str]) -> Iterator[str]:
        for archive in archives[:2]:
            index(archive)
        raise Killed

    store, source = Store(str(tmp_path / "run")), Source(uri=f"s3://{bucket}/in")
    with pytest.raises(Killed):
        list_corpus(store, source, 4, killed_behind_two)
    first = len(s3.requests(bucket))
    corpus = list_corpus(store, source, 4)
    assert keys_read(s3, bucket, first) == {"in/2.tar", "in/3.tar", "in/4.tar"}
    whole = list_corpus(Store(str(tmp_path / "undisturbed")), source, 4)
    assert [(s.id, s.rows) for s in corpus.shards] == [(s.id, s.rows) for s in whole.shards]
    assert [corpus.listing(s) for s in corpus.shards] == [whole.listing(s) for s in whole.shards]


def test_results_may_come_in_any_order(tmp_path: Path) -> None:
    def backwards(archives: list[str], index: Callable[[str], str]) -> Iterator[str]:
        yield from map(index, reversed(archives))

    for i in range(5):
        write_tar(tmp_path / "in" / f"{i}.tar", contents(6, i))
    source = Source(uri=str(tmp_path / "in"))
    one, other = (
        list_corpus(Store(str(tmp_path / name)), source, 4, *spread) for name, spread in (("a", ()), ("b", [backwards]))
    )
    assert [s.id for s in one.shards] == [s.id for s in other.shards]


def damaged_listing(corpus: Corpus) -> Path:
    path = Path(corpus.step.store.path(corpus.shards[1].listing))
    path.write_bytes(path.read_bytes()[:-1])
    return path


def test_a_damaged_index_names_the_commit_without_which_it_is_made_again(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / "in" / f"{i}.tar", contents(6, i))
    corpus = listed(tmp_path, tmp_path / "in")
    images = read_all(corpus)
    path = damaged_listing(corpus)
    with pytest.raises(Damaged) as error:
        read_all(listed(tmp_path, tmp_path / "in"))
    commit = next(w for w in str(error.value).split() if "/commits/" in w)
    assert str(path) in str(error.value)
    Path(commit).unlink()
    again = listed(tmp_path, tmp_path / "in")
    assert read_all(again) == images
    assert {s.id for s in again.shards} == {s.id for s in corpus.shards}


def test_an_archive_that_cannot_be_indexed_is_refused_and_others_are_kept(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"] * 3}), _folder(tmp_path) / "0.parquet")
    (tmp_path / "in" / "1.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(ConfigError, match=r"1\.parquet.* is no Parquet file, or damaged"):
        listed(tmp_path, tmp_path / "in")
    assert len(list((tmp_path / "run").glob("archives-*/commits/*"))) == 1
    (tmp_path / "in" / "1.parquet").unlink()
    assert listed(tmp_path, tmp_path / "in").images == 3


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"
