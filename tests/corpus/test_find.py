"""Files at an address: forms, patterns and hidden files, and addresses that are refused."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from corpora import write_files
from fsspec.implementations.memory import MemoryFileSystem
from s3_server import S3Server

from upl_ray.corpus.find import expand_braces, find, sub_folder
from upl_ray.errors import ConfigError

TREE = (
    *("0000.tar", "0001.tar", "0010.tar", "[ab].tar", "a.jpg", ".hidden.jpg", "notes.md", ".git/e.jpg"),
    *("x/b.jpg", "x/.cache/d.jpg", "x/y/c.jpg", "x/y/z/a.jpg", "z/b.jpg", "z/b.png"),
)
PATTERNS = {  # -> files
    "*.jpg": "a.jpg",
    "*/*.jpg": "x/b.jpg z/b.jpg",
    "**/*.jpg": "a.jpg x/b.jpg x/y/c.jpg x/y/z/a.jpg z/b.jpg",
    "x/**/*.jpg": "x/b.jpg x/y/c.jpg x/y/z/a.jpg",
    "**/a.jpg": "a.jpg x/y/z/a.jpg",
    "?/b.*g": "x/b.jpg z/b.jpg z/b.png",
    "[xy]/b.jpg": "x/b.jpg",
    "[!x]/b.jpg": "z/b.jpg",
    "x[!q]b.jpg": "",
    "x?b.jpg": "",
    "x*b.jpg": "",
    ".hidden*": "",
    "{x,z}/b.jpg": "x/b.jpg z/b.jpg",
    "{x,z}/{b,q}.{jpg,png}": "x/b.jpg z/b.jpg z/b.png",
    "x/{b,y/c}.jpg": "x/b.jpg x/y/c.jpg",
    "{0000..0007}.tar": "0000.tar 0001.tar",
    "{0001..0010}.tar": "0001.tar 0010.tar",
    "{0..10}.tar": "",
    "00{00..10}.t*": "0000.tar 0001.tar 0010.tar",
    "[[]ab].tar": "[ab].tar",
    "x/**": "x/b.jpg x/y/c.jpg x/y/z/a.jpg",
}


@pytest.mark.parametrize("place", ["local", "memory"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_choose_files_by_the_rules_of_a_shell(tmp_path: Path, place: str, pattern: str) -> None:
    root = str(tmp_path)
    if place == "local":
        write_files(tmp_path, dict.fromkeys(TREE, b"x"))
    else:
        root = f"memory:/{tmp_path}"
        for name in TREE:
            MemoryFileSystem().pipe(f"{tmp_path}/{name}", b"x")
    expected = sorted(PATTERNS[pattern].split())
    if place == "local":  # the oracle
        script = f'shopt -s globstar nullglob; for f in {pattern}; do [ -f "$f" ] && echo "$f"; done'
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert sorted(f for f in done.stdout.splitlines() if not f.startswith(".")) == expected
    if expected:
        found = find(f"{root}/{pattern}")
        assert sorted(f"{found.root}/{f}" for f in found.files) == [f"{root}/{f}" for f in expected]
        return
    with pytest.raises(ConfigError, match=r"`\*` stays within one folder"):
        find(f"{root}/{pattern}")


def test_patterns_choose_objects_in_s3(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.create_bucket()
    write_files(tmp_path, dict.fromkeys(("0/a.jpg", "1/a.jpg", "1/b/a.jpg", "2/a.jpg", "x[1]/a.jpg"), b"x"))
    s3.upload(tmp_path, bucket, "in")
    assert sorted(find(f"s3://{bucket}/in/[01]/a.jpg").files) == ["0/a.jpg", "1/a.jpg"]
    assert sorted(find(f"s3://{bucket}/in/?/a.jpg").files) == ["0/a.jpg", "1/a.jpg", "2/a.jpg"]
    assert sorted(find(f"s3://{bucket}/in/x[1]").files) == ["a.jpg"]  # it exists as it is written
    assert sorted(find(f"s3://{bucket}/in/{{1..2}}/**/*.jpg").files) == ["1/a.jpg", "1/b/a.jpg", "2/a.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{8..11}", "8 9 10 11"),
        ("{08..11}", "08 09 10 11"),
        ("{3..1}", "1 2 3"),
        ("{a,b{1,2}}", "a b1 a b2"),
        ("x{,y}", "x xy"),
        ("{a}{}{1..}", "{a}{}{1..}"),
    ],
)
def test_braces_are_expanded(pattern: str, expected: str) -> None:
    assert expand_braces(pattern) == expected.split()


def test_a_million_numbered_names_are_looked_up(tmp_path: Path) -> None:
    write_files(tmp_path, {"000000.tar": b"", "123456.tar": b"", "x.tar": b""})
    assert set(find(f"{tmp_path}/{{000000..999999}}.tar").files) == {"000000.tar", "123456.tar"}


@pytest.mark.parametrize("pattern", ["{0..99999999}.jpg", "{0..9999}/{0..9999}.jpg"])
def test_more_names_than_memory_holds_are_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stands for 100,000,000 names, more than 2,000,000; write \*"):
        find(f"{tmp_path}/{pattern}")


def test_a_folder_may_be_named_like_a_pattern(tmp_path: Path) -> None:
    write_files(tmp_path, {"photos [1]/a.jpg": b"", "photos 1/b.jpg": b"", "c{1}.jpg": b""})
    assert set(find(f"{tmp_path}/photos [1]").files) == {"a.jpg"}
    assert set(find(f"{tmp_path}/c{{1}}.jpg").files) == {"c{1}.jpg"}


def test_hidden_and_other_files_are_not_found(tmp_path: Path) -> None:
    root = tmp_path / ".above"  # only names below the address count
    images = [f"a.{end}" for end in ("JPG", "jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")]
    others = ("notes.txt", "a/.hidden.jpg", ".git/x.jpg", "a/.cache/y.png", "z.jpg.tmp", "jpg", "a.json", "b.jpgx")
    write_files(root, dict.fromkeys([*images, *others], b"x"))
    assert sorted(find(str(root)).files) == sorted(images)


@pytest.mark.parametrize("log", ["_delta_log/00000000000000000000.json", "t/metadata/v2.metadata.json"])
def test_a_table_that_keeps_replaced_rows_is_refused(tmp_path: Path, log: str) -> None:
    write_files(tmp_path, dict.fromkeys(("part-0.parquet", "part-1.parquet", log), b"{}"))
    with pytest.raises(
        ConfigError, match=rf"is a Delta or Iceberg table \({re.escape(log)}\), .*; export its current rows"
    ):
        find(str(tmp_path))
    assert len(find(f"{tmp_path}/part-1.parquet").files) == 1


def test_an_address_holds_one_form(tmp_path: Path) -> None:
    write_files(tmp_path, dict.fromkeys(("0.tar", "1.tar", "2.tar", "a.jpg", "deep/b.png", "list.txt"), b""))
    with pytest.raises(ConfigError, match=r"holds 2 images files and 3 tar files; choose one form .*/\*\*/\*\.jpg\.$"):
        find(str(tmp_path))
    forms = {p: find(f"{tmp_path}/{p}").form for p in ("*.tar", "0.tar", "**/*.png", "deep", "*.txt", "list.txt")}
    assert forms == {
        **dict.fromkeys(("*.tar", "0.tar"), "tar"),
        **dict.fromkeys(("**/*.png", "deep"), "images"),
        **dict.fromkeys(("*.txt", "list.txt"), "manifest"),
    }


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("empty", r"No image lies under .*empty'; name files ending in \.jpg"),
        ("text", r"No image lies under .*\.jpg"),
        ("a.tar.gz", "is compressed, .*unpack it"),
        ("missing", "cannot be listed"),
        ("missing.tar", "cannot be listed"),
        ("text/b.tsv", r"text/b\.tsv' is a file of another form; name files ending in .*\.csv"),
        ("text/a**.txt", r"cannot be listed .*'\*\*'"),
        ("nosuch://bucket/x", "cannot be listed"),
    ],
)
def test_an_address_without_images_is_refused(tmp_path: Path, address: str, match: str) -> None:
    (tmp_path / "empty").mkdir()
    write_files(tmp_path, {"text/a.txt": b"", "text/b.tsv": b""})
    with pytest.raises(ConfigError, match=match):
        find(address if "://" in address else f"{tmp_path}/{address}")


def test_folders_are_labels() -> None:
    ids = ["cat/1.jpg", "sea_horse/x/2.jpg", "bird/3.jpg", "dog.jpg", "x/cat/1.jpg"]
    assert [sub_folder(i) for i in ids] == ["cat", "sea_horse", "bird", None, "x"]
