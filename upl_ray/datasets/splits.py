"""Reads a data set's published split: which image is in which part, and of which class.

Class names are kept as their files have them; `_` becomes a space where prompts are made (CoOp).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upl_ray.artifacts import Store
from upl_ray.datasets.layouts import COOP, Layout
from upl_ray.images import EXTENSIONS
from upl_ray.section import ConfigError
from upl_ray.sources import UNREACHABLE, first_line, list_files
from upl_ray.storage import absolute

Part = dict[str, int]  # image, relative to the folder of images -> index of its class


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
        ConfigError: a folder, file or image is missing, or a file is not what its name says; with what to fetch.
    """
    folder = Store(root).join(layout.folder)
    images = Store(folder).join(layout.images).rstrip("/")
    try:
        images = absolute(images)  # data sets are often links to where they really lie
        versions = {f: v for f, v in list_files(images).items() if f.lower().endswith(EXTENSIONS)}
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
    split = {"split": f"{layout.split} of CoOp", "folders": f"{layout.split} of CoOp"}.get(layout.form)
    files = " and ".join([layout.fetch, *([split] if split else [])])
    place = f"{root}/{layout.folder}/"
    return (
        f"dataset.root: {problem}. {layout.title} needs {files}; put images below {place}{layout.images} "
        f"and {layout.split} into {place} (links are in {COOP}), or name another dataset.root."
    )


def _coop_split(store: Store, layout: Layout, versions: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Part]]:
    """`split_zhou_*.json`: for train, val and test a list of [image, class index, class name]."""
    data: dict[str, list[list[Any]]] = store.read_json(layout.split)
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
    return [line.strip() for line in store.read(name).decode().splitlines() if line.strip()]
