"""Masks, label images and thumbnails that lie beside the photographs they belong to (pure).

To a listing they are images like others; how they are named gives them away: `images/a.jpg` and `masks/a.png`,
`JPEGImages/a.jpg` and `SegmentationClass/a.png`, `train/a.jpg` and `train_masks/a_mask.gif`, `a.tif` and `a_mask.tif`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

OF_ANOTHER = "mask, label or thumbnail of another image"  # why it is left out
MASK = re.compile(r"masks?|seg(mentation)?s?|annotations?|trimaps?|(ground)?truth|labels?|thumb(nail)?s?")
# Words of folders that say nothing about what the images show.
IMAGES = re.compile(r"data|sets?|im(age|g)s?|photos?|pictures?|jpe?gs?|pngs?|tiffs?|ground|class|objects?")
BEHIND = re.compile(r"[ ._-]([A-Za-z]+)(?:[ ._-]?\d+)?$")
HINT = re.compile(r"mask|seg|annotation|trimap|truth|label|thumb")  # looked for first, in millions of names

Key = tuple[str, ...]


def words_of(name: str) -> list[str]:
    """Words of a file's or folder's name, in small letters: `SegmentationClass` has two, as `seg_train` does."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return re.findall(r"[^\W\d_]+", apart.lower())


def masks_among(files: Iterable[str]) -> list[str]:
    """Those of some image files that are named like masks, labels or thumbnails of others of them."""
    names = list(files)
    hinted = {f for f in names if HINT.search(f.lower())}
    if not hinted:
        return []
    folders: dict[str, Key] = {}
    keys = {f: (*_folder_key(f, folders), _plain_stem(f)) for f in hinted}
    masks = {f for f in hinted if _stem(f) != keys[f][-1] or any(MASK.fullmatch(w) for w in _folder_words(f))}
    photographs = {keys[f] if f in hinted else (*_folder_key(f, folders), _stem(f)) for f in names if f not in masks}
    return [f for f in names if f in masks and keys[f] in photographs]


def _folder_words(file: str) -> list[str]:
    return [w for part in PurePosixPath(file).parts[:-1] for w in words_of(part)]


def _folder_key(file: str, seen: dict[str, Key]) -> Key:
    """The folders above a file, without words that tell its photographs and masks apart."""
    folder = file.rpartition("/")[0]
    if folder not in seen:
        kept = (
            " ".join(w for w in words_of(part) if not MASK.fullmatch(w) and not IMAGES.fullmatch(w))
            for part in folder.split("/")
        )
        seen[folder] = tuple(filter(None, kept))
    return seen[folder]


def _stem(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0]


def _plain_stem(file: str) -> str:
    """The name of the photograph that a mask of this name belongs to: `a (1)_mask_2.png` to `a (1)`."""
    return BEHIND.sub(lambda m: "" if MASK.fullmatch(m[1].lower()) else m[0], _stem(file))
