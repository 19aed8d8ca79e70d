"""Exported labels, read back by the tools that they are made for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from corpora import write_tar
from PIL import Image
from pycocotools.coco import COCO
from report_pages import FILE_NAMES, NASTY, MakeRun, reported, rows_of, write_images

from benchmarks.synthetic_run import SyntheticRun
from upl_ray.report.labels import common_folder
from upl_ray.storage.store import Store


def test_hugging_face_reads_the_labels_beside_the_images(
    nasty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import datasets

    images = Path(nasty.read_json("run.json")["config"]["corpus"]["uri"])
    shutil.copytree(images, tmp_path / "images")
    metadata = Path(nasty.uri) / "report/labels/imagefolder-upl-star/metadata.jsonl"
    shutil.copy(metadata, tmp_path / "images")
    options = {"data_dir": str(tmp_path / "images"), "split": "train", "cache_dir": str(tmp_path / "cache")}
    found = datasets.load_dataset("imagefolder", **options)
    expected = rows_of(nasty, "report/labels/predictions-upl-star.csv")
    places = [json.loads(line)["file_name"] for line in metadata.read_text().splitlines()]
    assert places == [r["image_id"] for r in expected]
    by_place = {Path(row["image"].filename).relative_to(tmp_path / "images").as_posix(): row for row in found}
    assert by_place.keys() == set(places)
    for row in expected:
        read = by_place[row["image_id"]]
        assert (read["label"], NASTY[read["label"]]) == (int(row["label"]), read["classname"])
        assert read["image_id"] == row["image_id"]
        assert [read[n] for n in ("confidence", "members_agree", "known")] == [
            float(row[n]) for n in ("confidence", "members_agree", "known")
        ]
        with Image.open(images / row["image_id"]) as image:
            assert read["image"].convert("RGB").tobytes() == image.convert("RGB").tobytes()


def test_coco_tools_read_the_labels(nasty: Store) -> None:
    coco = COCO(f"{nasty.uri}/report/labels/coco/annotations/labels_upl.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(NASTY)
    expected = rows_of(nasty, "report/labels/predictions-upl.csv")
    assert len(coco.getImgIds()) == len(coco.getAnnIds()) == len(expected)
    for number, row in enumerate(expected, 1):
        (image,), (said,) = coco.loadImgs([number]), coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert (Path(coco.dataset["info"]["folder"]) / image["file_name"]).is_file()
        assert image["file_name"] == image["image_id"] == row["image_id"]
        assert coco.loadCats([said["category_id"]])[0]["name"] == row["classname"]
        assert said["score"] == float(row["confidence"])
        assert said["attributes"] == {n: float(row[n]) for n in ("members_agree", "known")}
    of_class = coco.getImgIds(catIds=[1])
    assert len(of_class) == sum(r["label"] == "0" for r in expected)


def test_refined_labels_bring_the_label_of_even_classes(make_run: MakeRun) -> None:
    store = reported(make_run(variants=("refined",)))
    rows = rows_of(store, "report/labels/predictions-refined.csv")
    lines = store.read("report/labels/imagefolder-refined/metadata.jsonl").decode().splitlines()
    coco = store.read_json("report/labels/coco/annotations/labels_refined.json")
    assert [str(json.loads(line)["even_label"]) for line in lines] == [r["even_label"] for r in rows]
    assert [str(a["attributes"]["even_label"]) for a in coco["annotations"]] == [r["even_label"] for r in rows]


def test_images_of_archives_are_addressed_inside_of_them_and_are_no_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    names = ("a", "b")
    write_images(tmp_path / "images", names, FILE_NAMES[:2])
    for name in names:
        members = {p.name: p.read_bytes() for p in (tmp_path / "images" / name).iterdir()}
        write_tar(tmp_path / "tars" / name / "x.tar", members)
    run = SyntheticRun(tmp_path / "run", tmp_path / "tars", names, ("upl",))
    store = reported(run)
    assert store.read("report/labels/imagefolder-upl/metadata.jsonl") == b""
    assert "4 images are no files below one folder, as imagefolder needs them" in caplog.text
    files = [i["file_name"] for i in store.read_json("report/labels/coco/annotations/labels_upl.json")["images"]]
    assert len(files) == 4
    assert all(f.startswith(("a/x.tar#a/x.tar!", "b/x.tar#b/x.tar!")) for f in files)


@pytest.mark.parametrize(
    ("roots", "folder"),
    [
        (["/a/b"], "/a/b/"),
        (["/a/b/", "/a/c/d"], "/a/"),
        (["/a", "/b"], ""),
        (["s3://x/a", "s3://x/b"], "s3://x/"),
        (["s3://x/a", "s3://y/a"], ""),
        (["s3://x/a", "/a"], ""),
    ],
)
def test_names_are_seen_from_the_folder_that_all_addresses_share(roots: list[str], folder: str) -> None:
    assert common_folder(roots) == folder
