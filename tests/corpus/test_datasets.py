"""Published data sets: real splits where they are at hand, small folders of the same layout everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image
from s3_server import S3Server

from upl_ray.config.cli import load_config
from upl_ray.config.settings import Config, DatasetName
from upl_ray.corpus.datasets import LAYOUTS, Layout, open_dataset, read_split
from upl_ray.corpus.read import read_images
from upl_ray.corpus.shards import Corpus, list_corpus
from upl_ray.errors import ConfigError
from upl_ray.storage.store import Store
from upl_ray.upl.metrics import true_labels

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
SPLITS, PHOTOS = DATA / "coop_splits", DATA / "caltech-101" / "101_ObjectCategories"
# Train, validation and test images and classes, as CoOp counts them.
PUBLISHED = {
    "caltech101": (4128, 1649, 2465, 100),
    "dtd": (2820, 1128, 1692, 47),
    "eurosat": (13500, 5400, 8100, 10),
    "oxford_flowers": (4093, 1633, 2463, 102),
    "oxford_pets": (2944, 736, 3669, 37),
    "stanford_cars": (6509, 1635, 8041, 196),
    "ucf101": (7639, 1898, 3783, 101),
}
# One simple template for each data set (arXiv 2204.03649, section 4.1).
TEMPLATES = {
    **dict.fromkeys(("imagenet", "caltech101", "sun397", "stanford_cars"), "a photo of a {}."),
    "oxford_pets": "a photo of a {}, a type of pet.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "food101": "a photo of {}, a type of food.",
    "ucf101": "a photo of a person doing {}.",
}
# A small data set: image -> (part, class).
SMALL = {f"{part}_{c}_{i}.jpg": (part, c) for part in ("train", "val", "test") for c in range(3) for i in range(2)}
NAMES = ("big_cat", "747-100", "sea")


def write_images(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (len(name), 3, 5)).save(folder / name)


def write_small(root: Path, layout: Layout) -> None:
    """Six images a part in the layout of a data set."""
    folder = root / layout.folder
    if layout.form == "folders":
        classes = ("n01", "n02", "n10")
        parts = {"train": "train", "test": "val"}
        images = [f"{parts[p]}/{classes[c]}/{i}" for i, (p, c) in SMALL.items() if p in parts]
        text = "\n".join(f"{k} {n}" for k, n in zip(classes, NAMES, strict=True))
        write_images(folder / layout.images, images)
        (folder / layout.split).write_text(text + "\n")
        return
    write_images(folder / layout.images, list(SMALL))
    if layout.form == "variants":
        (folder / layout.split).write_text("\n".join(NAMES) + "\n")
        for part in ("train", "val", "test"):
            lines = [f"{i.removesuffix('.jpg')} {NAMES[c]}" for i, (p, c) in SMALL.items() if p == part]
            (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
        return
    split = {part: [[i, c, NAMES[c]] for i, (p, c) in SMALL.items() if p == part] for part in ("train", "val", "test")}
    (folder / layout.split).write_text(json.dumps(split))


def config(name: str, root: Path | str, storage: Path, **more: Any) -> Config:
    data = {"dataset": {"name": name, "root": str(root)}, "backbones": ["demo:rn"], "storage_path": str(storage)}
    return Config.model_validate({**data, **more})


def listed(corpus: Corpus) -> dict[str, str | None]:
    return {i: label for shard in corpus.shards for i, label in corpus.labels(shard).items()}


def corpora(opened: Config, store: Store) -> dict[str, Corpus]:
    fields = {"train": opened.corpus, "val": opened.validation, "test": opened.scored}
    return {part: list_corpus(store, source, 1000) for part, source in fields.items() if source.uris}


def test_every_data_set_has_a_name_a_layout_and_a_job() -> None:
    assert set(get_args(DatasetName)) - {""} == LAYOUTS.keys() == TEMPLATES.keys()
    assert {p.stem for p in (ROOT / "jobs" / "datasets").glob("*.yaml")} == LAYOUTS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_job_names_its_data_set_template_and_the_paper_s_models(name: str) -> None:
    job = load_config([str(ROOT / "jobs" / "datasets" / f"{name}.yaml")], default=ROOT / "jobs" / "demo.yaml")
    assert (job.dataset.name, job.template) == (name, TEMPLATES[name])
    assert (len(job.backbones), job.target, set(job.variants)) == (8, "RN50-openai", {"upl", "upl*"})


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_small_folder_of_its_layout_is_read(name: str, tmp_path: Path) -> None:
    write_small(tmp_path / "data", LAYOUTS[name])
    store = Store(str(tmp_path / "run"))
    opened = open_dataset(config(name, tmp_path / "data", tmp_path / "run"), store)
    assert opened.classnames == ("big cat", "747-100", "sea")
    found = corpora(opened, store)
    assert set(found) == ({"train", "test"} if name == "imagenet" else {"train", "val", "test"})
    for part, corpus in found.items():
        expected = {i: c for i, (p, c) in SMALL.items() if p == part}
        labels = {i.rpartition("/")[2]: label for i, label in listed(corpus).items()}
        assert labels == {i: str(c) for i, c in expected.items()}
        assert set(true_labels(labels.values(), ("big cat", "747-100", "sea"))) == {0, 1, 2}
        (shard,) = corpus.shards
        assert all(isinstance(data, bytes) for data in read_images(shard.root, corpus.listing(shard)))


@pytest.mark.parametrize("name", ["imagenet", "dtd", "fgvc_aircraft", "stanford_cars"])
def test_object_storage_holds_data_sets_too(name: str, tmp_path: Path, s3: S3Server) -> None:
    bucket = s3.create_bucket()
    write_small(tmp_path, LAYOUTS[name])
    s3.upload(tmp_path, bucket, "sets")
    store = Store(f"s3://{bucket}/run")
    opened = open_dataset(config(name, f"s3://{bucket}/sets", Path("unused")), store)
    corpus = corpora(opened, store)["train"]
    assert {i.rpartition("/")[2] for i in listed(corpus)} == {i for i, (p, _) in SMALL.items() if p == "train"}
    (shard,) = corpus.shards
    assert all(isinstance(data, bytes) for data in read_images(shard.root, corpus.listing(shard)))


def test_doubled_class_names_keep_their_indices(tmp_path: Path) -> None:
    write_small(tmp_path, LAYOUTS["imagenet"])
    (tmp_path / "imagenet" / "classnames.txt").write_text("n01 missile\nn10 missile\nn02 sunglasses\n")
    store = Store(str(tmp_path / "run"))
    opened = open_dataset(config("imagenet", tmp_path, tmp_path / "run"), store)
    assert opened.classnames == ("missile", "sunglasses", "missile")
    assert set(listed(corpora(opened, store)["test"]).values()) == {"0", "1", "2"}


def test_opening_it_again_changes_nothing_and_a_changed_image_only_itself(tmp_path: Path) -> None:
    write_small(tmp_path, LAYOUTS["dtd"])
    store = Store(str(tmp_path / "run"))
    first = open_dataset(config("dtd", tmp_path, tmp_path / "run"), store)
    before = corpora(first, store)["train"]
    assert open_dataset(config("dtd", tmp_path, tmp_path / "run"), store) == first
    assert corpora(first, store)["train"].digest == before.digest
    Image.new("RGB", (20, 20)).save(tmp_path / "dtd" / "images" / "train_0_0.jpg")
    assert open_dataset(config("dtd", tmp_path, tmp_path / "run"), store) == first
    after = corpora(first, store)["train"]
    assert (after.images, after.added) == (before.images, 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_folder_says_what_to_fetch_and_where_to_put_it(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    with pytest.raises(ConfigError) as error:
        open_dataset(config(name, tmp_path, tmp_path / "run"), Store(str(tmp_path / "run")))
    words = ["dataset.root", layout.title, layout.fetch, layout.split, f"{tmp_path}/{layout.folder}/{layout.images}"]
    assert [w for w in words if w not in str(error.value)] == []


@pytest.mark.parametrize("name", ["imagenet", "dtd", "fgvc_aircraft"])
def test_a_missing_split_or_image_and_a_broken_split_are_refused(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    split = tmp_path / layout.folder / layout.split

    def refusal() -> str:
        with pytest.raises(ConfigError) as error:
            read_split(layout, str(tmp_path))
        return str(error.value)

    write_small(tmp_path, layout)
    split.unlink()
    assert layout.split in refusal()
    split.write_text("{")
    assert "cannot be understood" in refusal()
    if layout.form != "folders":  # ImageNet's split is what lies there
        write_small(tmp_path, layout)
        (tmp_path / layout.folder / layout.images / "test_1_0.jpg").unlink()
        assert "1 images" in refusal()
        assert "test_1_0.jpg" in refusal()


@pytest.mark.parametrize("rows", [[["../x.jpg", 0, "a"]], [["a.jpg", 1, "a"]], [["a.jpg", "x", "a"]], [["a.jpg"]], {}])
def test_a_split_that_points_elsewhere_or_skips_classes_is_refused(rows: Any, tmp_path: Path) -> None:
    write_images(tmp_path / "dtd" / "images", ["a.jpg"])
    write_images(tmp_path / "dtd", ["x.jpg"])
    split = {"train": rows, "val": [], "test": []}
    (tmp_path / "dtd" / LAYOUTS["dtd"].split).write_text(json.dumps(split if rows else {}))
    with pytest.raises(ConfigError, match=r"DTD needs"):
        read_split(LAYOUTS["dtd"], str(tmp_path))


def test_corpus_or_class_names_beside_a_data_set_are_refused(tmp_path: Path) -> None:
    for more in ({"corpus": {"uri": "x"}}, {"classnames": ["a", "b"]}):
        with pytest.raises(ConfigError, match="remove one of the two"):
            open_dataset(config("dtd", tmp_path, tmp_path, **more), Store(str(tmp_path)))


@pytest.mark.skipif(not SPLITS.is_dir(), reason="the published splits are not at hand")
@pytest.mark.parametrize("name", PUBLISHED)
def test_real_splits_have_the_published_numbers(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    folder = tmp_path / layout.folder
    data = json.loads((SPLITS / layout.split).read_text())
    for path, _, _ in (row for part in data.values() for row in part):
        file = folder / layout.images / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (folder / layout.split).write_bytes((SPLITS / layout.split).read_bytes())
    split = read_split(layout, str(tmp_path))
    assert (*(len(split.parts[p]) for p in ("train", "val", "test")), len(split.classnames)) == PUBLISHED[name]
    for part, rows in data.items():
        assert split.parts[part] == {path: label for path, label, _ in rows}


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the Caltech-101 photographs are not at hand")
def test_caltech101_with_its_photographs(tmp_path: Path) -> None:
    folder = tmp_path / "caltech-101"
    folder.mkdir()
    (folder / "101_ObjectCategories").symlink_to(PHOTOS)
    (folder / "split_zhou_Caltech101.json").symlink_to(SPLITS / "split_zhou_Caltech101.json")
    store = Store(str(tmp_path / "run"))
    opened = open_dataset(config("caltech101", tmp_path, tmp_path / "run"), store)
    found = corpora(opened, store)
    assert {p: c.images for p, c in found.items()} == {"train": 4128, "val": 1649, "test": 2465}
    assert (len(opened.classnames), len(set(opened.classnames))) == (100, 100)
    assert [n for n in opened.classnames if "_" in n] == []
    (shard, *_) = found["test"].shards
    assert all(isinstance(d, bytes) for d in read_images(shard.root, found["test"].listing(shard).slice(0, 40)))
