"""Corrections: three forms of one file; every mistake in it is refused with its row before work."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import contents, listed, write_files

from upl_ray.corpus.corrections import NONE, corrections_of, find_corrections, read_corrections
from upl_ray.corpus.shards import Corpus
from upl_ray.errors import ConfigError
from upl_ray.storage.store import Store

NAMES = ("cat", "guinea pig", "dog")


def read(tmp_path: Path, text: str | bytes, name: str = "c.csv") -> dict[str, int]:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return {i: label for i, (label, _) in read_corrections([str(tmp_path / name)], NAMES).items()}


def test_every_form_gives_the_same_labels(tmp_path: Path) -> None:
    expected = {"a/1.jpg": 0, "a, b.jpg": 1, "x.tar!2.png": NONE, "4": 2}
    text = 'image_id,label,mark\r\na/1.jpg,cat,right\r\n"a, b.jpg",guinea_pig,\r\nx.tar!2.png,,\r\n4,2,\r\n'
    assert read(tmp_path, text) == expected
    assert read(tmp_path, b'\xef\xbb\xbflabel,image_id\ncat,a/1.jpg\n1,"a, b.jpg"\n,x.tar!2.png\ndog,4\n') == expected
    lines = ['{"image_id": "a/1.jpg", "label": "cat"}', '{"image_id": "a, b.jpg", "label": 1}']
    lines += ['{"image_id": "x.tar!2.png", "label": null}', '{"image_id": 4, "label": "dog"}']
    assert read(tmp_path, "\n".join(lines), "c.jsonl") == expected
    table = {"image_id": list(expected), "label": ["cat", "guinea pig", None, "dog"]}
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    assert read(tmp_path, (tmp_path / "c.parquet").read_bytes(), "c.parquet") == expected
    assert read(tmp_path, "image_id,label\n") == {}


def test_numbers_of_a_table_have_the_names_that_stand_with_them(tmp_path: Path) -> None:
    table = pa.table({"image_id": [1.0, 2.0], "label": [1.0, math.nan]})  # as pandas keeps whole numbers with gaps
    pq.write_table(table, tmp_path / "c.parquet")
    assert read(tmp_path, (tmp_path / "c.parquet").read_bytes(), "c.parquet") == {"1": 1, "2": NONE}
    about = {"info": {"features": {"label": {"names": ["dog", "cat"]}}}}  # Hugging Face's datasets
    table = pa.table({"image_id": ["a", "b"], "label": [0, -1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "c.parquet")
    assert read(tmp_path, (tmp_path / "c.parquet").read_bytes(), "c.parquet") == {"a": NAMES.index("dog"), "b": NONE}


@pytest.mark.parametrize("name", ["c.tsv", "c.json"])
def test_another_form_is_refused_with_those_that_are_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*; make it one of \.csv, \.jsonl, \.parquet\."):
        read(tmp_path, "image_id\tlabel\n1\tcat\n", name)


def test_the_log_shows_how_numbers_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert read(tmp_path, "image_id,label\na,cat\nb,1\nc,2\n") == {"a": 0, "b": 1, "c": 2}
    assert [m.split(maxsplit=1)[1] for m in caplog.messages] == [
        "labels that are numbers count from 0: 1 is 'guinea pig'"
    ]


def test_several_files_are_one_and_may_repeat_each_other(tmp_path: Path) -> None:
    for name, text in {"a.csv": "1,cat\n2,dog\n", "b.csv": "2,dog\n3,\n"}.items():
        (tmp_path / name).write_text(f"image_id,label\n{text}")
    found = read_corrections([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], NAMES)
    assert {i: label for i, (label, _) in found.items()} == {"1": 0, "2": 2, "3": NONE}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,label\n1,cat\n2,cow\n", r"row 2 of '.*c\.csv' names the class 'cow', which is not among the 3"),
        ("image_id,label\n1,3\n", "row 1 of .* names the class '3'"),
        ("image_id,label\n1,cat\n2,\n1,dog\n", "row 3 of .* gives '1' another label than row 1 of .*; keep one"),
        ("image_id,label\n1,cat\n1,\n", "row 2 of .* gives '1' another label"),
        ("image_id,label\n,cat\n", "row 1 of .* names no image"),
        ("image_id;label\n1;cat\n", "cannot be read: its columns are parted by ';'; save it with commas"),
        ('"image_id";"label"\n"1";"cat"\n', "cannot be read: its columns are parted by ';'; save it with commas"),
        (
            "image_id,label,classname\n1,2,dog\n2,0,dog\n",
            "row 2 .* label '0' and the classname 'dog', .* another",
        ),
        ("image_id,label,classname\n1,,dog\n", "row 1 .* label '' and the classname 'dog', .* another class; write"),
        ("image_id,label,members_agree\n1,1,1.0\n", "table of the job's own labels .*'members_agree'.* keep the rows"),
        ("image_id,label,labelers_agree\n1,1,1.0\n", "table of the job's own labels"),
        ("image_id\n1\n", "row 1 of .* has no 'label' among 'image_id'"),
        ("image_id,label\n1,\n2\n", "row 2 of .* has no 'label' among 'image_id'; it needs"),
        ('image_id,label\n"1,cat\n2,dog\n', "cannot be read: unexpected end of data"),
        (b"image_id,label\n\xff,cat\n", r"'.*c\.csv' cannot be read: it is not UTF-8"),
    ],
)
def test_a_mistake_is_refused_with_its_row(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^label.corrections: .*{words}") as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["no.csv", "no.parquet", ""])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^label\.corrections: .* cannot be read"):
        read_corrections([str(tmp_path / name)], NAMES)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    write_files(tmp_path / "in", contents(20))
    return listed(tmp_path, tmp_path / "in")


def test_corrections_are_found_in_their_shards_once(tmp_path: Path, corpus: Corpus) -> None:
    ids = [i for s in corpus.shards for i in corpus.listing(s)["image_id"].to_pylist()]
    labels = {ids[0]: (2, "row 1"), ids[7]: (NONE, "row 2"), ids[8]: (0, "row 3")}
    step = find_corrections(Store(str(tmp_path / "run")), corpus, labels)
    first, second = corpus.shards[0].id, corpus.shards[1].id
    assert corrections_of(step) == {first: {ids[0]: 2}, second: {ids[7]: NONE, ids[8]: 0}}
    assert find_corrections(corpus.step.store, corpus, {}) is None
    assert corrections_of(None) == {}
    again = find_corrections(corpus.step.store, corpus, dict(reversed(labels.items())))
    other = find_corrections(corpus.step.store, corpus, {**labels, ids[0]: (1, "row 1")})
    assert again == step != other


def test_an_image_that_is_not_in_the_corpus_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"^label.corrections: row 1 of x names 'no\.jpg', which is no image of the"):
        find_corrections(corpus.step.store, corpus, {"no.jpg": (0, "row 1 of x")})
    gone = corpus.listing(corpus.shards[0])["image_id"][0].as_py()
    (tmp_path / "in" / gone).unlink()
    with pytest.raises(ConfigError, match="which is no image of the corpus"):
        find_corrections(corpus.step.store, listed(tmp_path, tmp_path / "in"), {gone: (0, "row 1")})
