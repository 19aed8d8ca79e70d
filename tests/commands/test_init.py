"""`upl-ray init`: the configuration that it writes is read by the job, and fits the images that it has looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import contents, write_files, write_tar

from upl_ray.commands.init import main
from upl_ray.config.cli import load_config
from upl_ray.config.settings import Config
from upl_ray.errors import ConfigError


def written(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    assert main([images]) == 0
    return load_config(["my.yaml"], default=Path("none.yaml"))


def test_class_folders_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"{name}/{i}.jpg" for i in range(3) for name in ("guinea_pig", "Hund ö", "cat")]
    write_files(tmp_path / "my photos", dict.fromkeys([*files, "cat/notes.heic"], b""))
    config = written("my photos", tmp_path, monkeypatch)
    assert (config.corpus.uri, config.corpus.labels, config.classnames) == ("my photos", "folders", "folders")
    text = (tmp_path / "my.yaml").read_text()
    assert "9 images in 3 folders" in text
    assert "3 names: Hund ö, cat, guinea pig" in text
    out = capsys.readouterr().out
    assert "Left out: 1 x .heic (cat/notes.heic)." in out
    assert out.rstrip().endswith("upl-ray run my.yaml")


@pytest.mark.parametrize("folders", [("train", "val"), ("0", "1"), ()], ids=["split", "numbers", "flat"])
def test_folders_that_are_no_classes_need_a_file_of_names(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "in", dict.fromkeys([f"{f}/1.jpg" for f in folders] or ["1.jpg"], b""))
    config = written("in", tmp_path, monkeypatch)
    assert (config.corpus.labels, config.classnames) == ("none", "classes.txt")
    assert "write classes.txt, then" in capsys.readouterr().out


def test_the_forms_of_archives_and_manifests_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "tars" / "a.tar", contents(3))
    table = pa.table({"image": [b"1", b"2"], "label": [0, 1]})
    about = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    (tmp_path / "parquet").mkdir()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "parquet" / "a.parquet"
    )
    pq.write_table(table, tmp_path / "plain.parquet")
    write_files(tmp_path, {"list.txt": b"a.jpg\n"})
    expected = {
        "tars": ("none", "classes.txt", "1 tar file."),
        "parquet": ("column", "folders", "2 images in 1 parquet file."),
        "plain.parquet": ("column", "classes.txt", "2 images in 1 parquet file."),
        "list.txt": ("none", "classes.txt", "1 manifest file."),
    }
    for uri, (labels, classnames, words) in expected.items():
        config = written(uri, tmp_path, monkeypatch)
        assert (config.corpus.labels, config.classnames) == (labels, classnames)
        assert f"{uri}: {words}" in capsys.readouterr().out
        (tmp_path / "my.yaml").unlink()


def test_nothing_is_overwritten_and_no_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, {"my.yaml": b"mine", "in/a.jpg": b"", "none/a.heic": b""})
    with pytest.raises(ConfigError, match=r"^'my\.yaml' is there already; name another file with --out, or remove it"):
        main(["in"])
    assert (tmp_path / "my.yaml").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"No image lies under .*1 x \.heic"):
        main(["none", "--out", "other.yaml"])
    assert not (tmp_path / "other.yaml").exists()
    with pytest.raises(ConfigError, match=r"'no/folder\.yaml' cannot be written .*No such file.* name another"):
        main(["in", "--out", "no/folder.yaml"])
    assert main(["in", "--out", "other.yaml"]) == 0
