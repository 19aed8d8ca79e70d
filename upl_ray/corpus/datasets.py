"""Published data sets by name: manifests of their parts and class names, from CoOp's folder layout and splits.

Class names stay as their files have them; `_` becomes a space where prompts are made (CoOp).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from upl_ray.config.classnames import clean_classname
from upl_ray.config.settings import Config, Source
from upl_ray.corpus.listing import list_files
from upl_ray.errors import ConfigError, first_line
from upl_ray.storage.step import Step
from upl_ray.storage.store import UNREACHABLE, Store, absolute
from upl_ray.upl.images import EXTENSIONS

COOP = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
FIELDS = {"train": "corpus", "val": "validation", "test": "scored"}  # part of the split -> section of the configuration

Part = dict[str, int]  # image, relative to the folder of images -> index of its class


@dataclass(frozen=True)
class Layout:
    """One data set below the root of all: `<root>/<folder>/<images>/...` and `<root>/<folder>/<split>`."""

    title: str
    folder: str
    images: str  # empty: the folder itself, as its split names sub-folders
    split: str  # file beside the folder of images
    fetch: str  # the archive that holds the images
    form: Literal["split", "variants", "folders"] = "split"


def _coop(title: str, folder: str, images: str, split: str, fetch: str) -> Layout:
    return Layout(title, folder, images, f"split_zhou_{split}.json", fetch)


# Keys are CoOp's names of the data sets.
LAYOUTS = {
    "imagenet": Layout(
        "ImageNet",
        "imagenet",
        "images",
        "classnames.txt",
        "the train and validation archives of ILSVRC 2012 (https://image-net.org), one folder a class in images/train "
        "and in images/val",
        "folders",
    ),
    "caltech101": _coop(
        "Caltech101", "caltech-101", "101_ObjectCategories", "Caltech101", "101_ObjectCategories.tar.gz"
    ),
    "dtd": _coop("DTD", "dtd", "images", "DescribableTextures", "dtd-r1.0.1.tar.gz"),
    "eurosat": _coop("EuroSAT", "eurosat", "2750", "EuroSAT", "EuroSAT.zip (the RGB images)"),
    "fgvc_aircraft": Layout(
        "FGVCAircraft",
        "fgvc_aircraft",
        "images",
        "variants.txt",
        "fgvc-aircraft-2013b.tar.gz, whose folder data/ becomes fgvc_aircraft/",
        "variants",
    ),
    "food101": _coop("Food101", "food-101", "images", "Food101", "food-101.tar.gz"),
    "oxford_flowers": _coop("Flowers102", "oxford_flowers", "jpg", "OxfordFlowers", "102flowers.tgz"),
    "oxford_pets": _coop("OxfordPets", "oxford_pets", "images", "OxfordPets", "images.tar.gz"),
    "sun397": _coop("SUN397", "sun397", "SUN397", "SUN397", "SUN397.tar.gz"),
    "stanford_cars": _coop("StanfordCars", "stanford_cars", "", "StanfordCars", "cars_train.tgz and cars_test.tgz"),
    "ucf101": _coop("UCF101", "ucf101", "UCF-101-midframes", "UCF101", "UCF-101-midframes.zip"),
}


def open_dataset(config: Config, store: Store) -> Config:
    """Set corpus, validation, scored and class names from `config.dataset`; without one, return the same configuration.

    A manifest of each part is written to the run's storage. Labels of the train part are in it to score pseudo-labels
    and to draw few-shot samples; pseudo-labels are made without them.

    Raises:
        ConfigError: see `read_split`; images or class names are given beside the data set.
    """
    name = config.dataset.name
    if not name:
        return config
    given = [f for f in FIELDS.values() if getattr(config, f).uris]
    if given or config.classnames:
        field = [*(f"{f}.uri" for f in given), "classnames"][0]
        raise ConfigError(f"{field} is given beside dataset.name {name!r}, which sets it; remove one of the two.")
    try:
        root = absolute(config.dataset.root)
    except ConfigError as error:
        raise ConfigError(f"dataset.root: {error}") from None
    split = read_split(LAYOUTS[name], root)
    # Without versions of files: when an image changes, the manifests do, and the corpus that they name stays.
    identity = {"images": split.images, "classnames": split.classnames, "parts": split.parts}
    step = Step.of(store, f"dataset-{name}", version=2, inputs=identity)
    update: dict[str, Any] = {"classnames": tuple(clean_classname(n) for n in split.classnames)}
    for part in split.parts:
        manifest = step.path(f"{part}.parquet")
        store.write_table(manifest, manifest_table(split, part))
        update[FIELDS[part]] = Source(uri=store.join(manifest), labels="column", roots=(split.images,))
    step.finish(dataset=name, images={p: len(i) for p, i in split.parts.items()}, classnames=split.classnames)
    return config.model_copy(update=update)


def manifest_table(split: Split, part: str) -> pa.Table:
    """One row an image: image_id, uri, label (index of the class, as names may repeat), version of the file."""
    items = sorted(split.parts[part].items())
    return pa.table(
        {
            "image_id": pa.array([i for i, _ in items], pa.string()),
            "uri": pa.array([f"{split.images}/{i}" for i, _ in items], pa.string()),
            "label": pa.array([str(label) for _, label in items], pa.string()),
            "version": pa.array([split.versions[i] for i, _ in items], pa.string()),
        }
    )


@dataclass(frozen=True)
class Split:
    """The parts of one data set. ImageNet has no `val`: its validation images are the test."""

    images: str  # absolute address of the folder of images
    versions: dict[str, str]  # image -> version of its file
    classnames: tuple[str, ...]
    parts: dict[str, Part]


def read_split(layout: Layout, root: str) -> Split:
    """Read the split of a data set below `root` and check that its images are there.

    Raises:
        ConfigError: a folder, file or image is missing, or the split cannot be read; with the files to fetch.
    """
    folder = Store(root).join(layout.folder)
    images = Store(folder).join(layout.images).rstrip("/")
    try:
        images = absolute(images)  # folders of data sets are often links
        versions = {f: v for f, v in list_files(images).files.items() if f.lower().endswith(EXTENSIONS)}
    except UNREACHABLE as error:
        raise ConfigError(_fetch(layout, root, f"{images} cannot be listed ({first_line(error)})")) from None
    try:
        read = {"split": _coop_split, "variants": _variants, "folders": _folders}[layout.form]
        classnames, parts = read(Store(folder), layout, versions)
    except FileNotFoundError as error:
        raise ConfigError(_fetch(layout, root, f"a file is missing ({first_line(error)})")) from None
    except (ValueError, LookupError, TypeError) as error:
        text = f"{layout.split} in {folder} or a file beside it cannot be understood ({first_line(error)})"
        raise ConfigError(_fetch(layout, root, text)) from None
    missing = sorted(i for part in parts.values() for i in part if i not in versions)
    if missing:
        text = f"{len(missing)} images of {layout.title} are not below {images}, for example {missing[0]}"
        raise ConfigError(_fetch(layout, root, text))
    return Split(images, versions, classnames, parts)


def _fetch(layout: Layout, root: str, problem: str) -> str:
    """The sentence about a data set that is not there: the problem, the files to fetch, and their places."""
    files = layout.fetch if layout.form == "variants" else f"{layout.fetch} and {layout.split} of CoOp"
    place = f"{root}/{layout.folder}/"
    return (
        f"dataset.root: {problem}. {layout.title} needs {files}; put images below {place}{layout.images} "
        f"and {layout.split} into {place} (links are in {COOP}), or name another dataset.root."
    )


def _coop_split(store: Store, layout: Layout, versions: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Part]]:
    """`split_zhou_*.json`: for train, val and test a list of [image, class index, class name]."""
    data: dict[str, list[list[Any]]] = json.loads(store.read(layout.split))
    rows = {part: data[part] for part in ("train", "val", "test")}
    names = {int(label): str(name) for of_part in rows.values() for _, label, name in of_part}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"its class indices are not 0 to {len(names) - 1}")
    parts = {part: {str(i).lstrip("/"): int(label) for i, label, _ in of_part} for part, of_part in rows.items()}
    return tuple(names[c] for c in range(len(names))), parts


def _variants(store: Store, layout: Layout, versions: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Part]]:
    """FGVCAircraft: `variants.txt` lists the classes, `images_variant_<part>.txt` has `<image number> <variant>`."""
    classnames = tuple(_lines(store, layout.split))
    index = {name: c for c, name in enumerate(classnames)}
    parts: dict[str, Part] = {}
    for part in ("train", "val", "test"):
        pairs = (line.partition(" ") for line in _lines(store, f"images_variant_{part}.txt"))
        parts[part] = {f"{number}.jpg": index[name.strip()] for number, _, name in pairs}
    return classnames, parts


def _folders(store: Store, layout: Layout, versions: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Part]]:
    """ImageNet: `classnames.txt` has `<folder> <class name>`; classes are numbered in the order of folder names."""
    names = {folder: name.strip() for folder, _, name in (x.partition(" ") for x in _lines(store, layout.split))}
    by_folder = [(path.split("/"), path) for path in sorted(versions)]
    found = sorted({p[1] for p, _ in by_folder if p[0] == "train" and len(p) == 3})
    if not found:
        raise FileNotFoundError(f"no image lies in a class folder of {store.join(layout.images)}/train")
    index = {folder: c for c, folder in enumerate(found)}
    parts = {
        part: {path: index[p[1]] for p, path in by_folder if p[0] == where and len(p) == 3}
        for part, where in (("train", "train"), ("test", "val"))
    }
    if not parts["test"]:
        raise FileNotFoundError(f"no image lies in a class folder of {store.join(layout.images)}/val")
    return tuple(names[folder] for folder in found), parts


def _lines(store: Store, name: str) -> list[str]:
    return [line.strip() for line in store.read(name).decode().split("\n") if line.strip()]
