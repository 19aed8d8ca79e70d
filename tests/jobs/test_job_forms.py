"""The whole job over the same digits in every form a corpus may have, and with features dropped after use."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import committed_rows, contexts, digit_world, folders, job_config

from upl_ray.pipeline.main import run

SHORT: dict[str, Any] = {
    "backbones": ["demo:vit_a"],
    "scored": {"uri": ""},
    "views": {"count": 0},
    "train": {"members": 1, "epochs": 2},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_world(tmp_path_factory.mktemp("digits"), corpus_per_class=8)


@pytest.fixture(scope="module")
def files(world: Path) -> list[Path]:
    return sorted((world / "corpus").rglob("*.png"))


@pytest.fixture(scope="module")
def of_folder(cluster: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(job_config(world, tmp_path_factory.mktemp("folder"), **SHORT))


def write_form(form: str, world: Path, files: list[Path], folder: Path) -> dict[str, Any]:
    """The digits as an archive or a manifest; returns the corpus section of the configuration."""
    folder.mkdir()
    names = [str(p.relative_to(world / "corpus")) for p in files]
    if form == "tar":
        with tarfile.open(folder / "digits.tar", "w") as tar:
            for path, name in zip(files, names, strict=True):
                tar.add(path, name)
        return {"uri": str(folder), "labels": "folders"}
    if form == "parquet":
        columns = {"image": [p.read_bytes() for p in files], "label": [n.split("/")[0] for n in names]}
        pq.write_table(pa.table(columns), folder / "digits.parquet", row_group_size=20)
        return {"uri": str(folder / "*.parquet"), "labels": "column"}
    lines = [json.dumps({"uri": str(p), "label": n.split("/")[0]}) for p, n in zip(files, names, strict=True)]
    (folder / "digits.jsonl").write_text("\n".join(lines))
    return {"uri": str(folder / "digits.jsonl"), "labels": "column", "roots": [str(world / "corpus")]}


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(f, marks=pytest.mark.faults if f == "manifest" else pytest.mark.slow)
        for f in ("tar", "parquet", "manifest")
    ],
)
def test_every_form_gives_the_results_of_the_folder(
    of_folder: dict[str, Any], world: Path, files: list[Path], tmp_path: Path, form: str
) -> None:
    corpus = write_form(form, world, files, tmp_path / "in")
    made = run(job_config(world, tmp_path / "run", **SHORT, corpus=corpus))
    for key in ("images", "rejected", "rejected_by_reason", "scores"):
        assert made[key] == of_folder[key], key
    assert made["scores"]["upl*"]["predictions"]["corpus"]["accuracy"] is not None
    # Names differ, and with them the order in which samples are shuffled; labels are the same bit for bit.
    assert labels_in_order(tmp_path / "run", len(files), form) == labels_in_order(of_folder["storage"], 0, "folder")
    np.testing.assert_allclose(contexts(made["classifier"]), contexts(of_folder["classifier"]), atol=1e-6)


@pytest.mark.slow
def test_a_storage_inside_of_the_images_folder_changes_no_result(
    of_folder: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    """Its report holds charts, which are no photographs of the second run."""
    shutil.copytree(world / "corpus", tmp_path / "in")
    (tmp_path / "in" / "one" / "back").symlink_to("..")
    (tmp_path / "in" / "notes.txt").write_text("digits")
    source = {"uri": str(tmp_path / "in"), "labels": "folders"}
    config = job_config(world, tmp_path / "in" / "run", **SHORT, corpus=source)
    first, second = run(config), run(config)
    assert second["status"] == "already done"
    assert first["images"] == second["images"] == of_folder["images"]
    links = {"link to what is listed already, or to a folder above": 1}
    assert first["left_out"]["corpus"].items() >= {".txt": 1, **links}.items()
    assert second["left_out"] == {"corpus": {".txt": 1, **links, "folder of results (storage_path)": 1}}
    assert of_folder["left_out"] == {"corpus": {}}


def labels_in_order(storage: Path | str, n: int, form: str) -> list[tuple[int, float]]:
    """Pseudo-label and confidence of the readable digits, in the order of their files' names."""
    (folder,) = folders(storage, "pseudo_labels")
    rows = committed_rows(storage, folder).to_pylist()
    if form == "parquet":
        assert max(int(r["image_id"].partition("!")[2]) for r in rows) < n
        rows.sort(key=lambda r: int(r["image_id"].partition("!")[2]))
    return [(r["pseudo_label"], r["confidence"]) for r in rows]


@pytest.mark.faults
def test_dropped_features_cost_nothing_until_they_are_needed(cluster: None, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "corpus", tmp_path / "world" / "corpus")
    short = SHORT | {"backbones": ["demo:vit_a", "demo:vit_b"]}
    kept = run(job_config(tmp_path / "world", tmp_path / "all", **short))
    storage = tmp_path / "none"
    for keep in ("target", "none"):
        made = run(job_config(tmp_path / "world", storage, **short, keep_features=keep))
        assert made["scores"] == kept["scores"]
        left = {f for f in folders(storage, "features") if parts(storage, f)}
        assert left == ({made["folders"]["features"][made["target"]]} if keep == "target" else set())
        assert made["rejected"] == kept["rejected"]
    again = run(job_config(tmp_path / "world", storage, **short, keep_features="none"))
    assert again["status"] == "already done"
    three = sorted((tmp_path / "world" / "corpus" / "three").iterdir())
    shutil.copy(three[0], three[0].with_name("new.png"))
    grown = run(job_config(tmp_path / "world", storage, **short, keep_features="target"))
    assert (grown["images"], grown["rejected"]) == (kept["images"] + 1, kept["rejected"])
    labels = {name: committed_rows(storage, name) for name in folders(storage, "pseudo_labels")}
    assert [len(t) for t in labels.values()] == [grown["images"] - grown["rejected"]]


def parts(storage: Path, folder: str) -> list[Path]:
    return list((storage / folder).glob("parts/*"))
