"""Masks, label images and thumbnails that lie beside the photographs they belong to (pure).

To a listing they are images like others; how they and their folders are named gives them away: `images/` and `masks/`,
`JPEGImages/` and `SegmentationClass/`, `train/a.jpg` and `train_masks/a_mask.gif`, `a.tif` and `a_mask.tif`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

OF_ANOTHER = "mask, label or thumbnail of another image"  # why it is left out
# Words of names, in small letters. Of masks and the like:
MASK = re.compile(
    r"masks?|seg(mentation)?s?|annotations?|trimaps?|(ground)?truth|gt|labels?|superpixels?|thumb(nail)?s?"
)
# Of photographs, and beside the others, which say nothing about what the images show:
IMAGES = re.compile(
    r"data|sets?|im(age|g)s?|photos?|pictures?|originals?|raw|rgb|frames?|scans?|inputs?|jpe?gs?|pngs?|tiffs?"
)
BESIDE = re.compile(r"ground|class|objects?|instances?|visuali[sz]ations?|fine|coarse|color|binary")
SPLITS = re.compile(
    r"train(ing|val)?|trn|val|valid(ation)?|dev|eval(uation)?|holdout|test(ing)?|tst|(un)?labell?ed|extra"
)
HINT = re.compile(r"mask|seg|annotation|trimap|truth|gt|label|superpixel|thumb|\dx\d")  # looked for first, in millions
RESIZED = re.compile(r"-\d{2,4}x\d{2,4}$")  # as web sites name copies of `a.jpg`: `a-150x150.jpg`
BEFORE = re.compile(r"^([a-z]+)(?=[\W\d_])[\W_]*(?=\w)", re.IGNORECASE)
BEHIND = re.compile(r"(?<=.)[\W_]([a-z]+)(?:[\W_]?\d+)?$", re.IGNORECASE)

Key = tuple[str, ...]


def words_of(name: str) -> list[str]:
    """Words of a file's or folder's name, in small letters: `SegmentationClass` has two, as `seg_train` does."""
    return re.findall(r"[^\W\d_]+", _apart(name).lower())


def _apart(name: str) -> str:
    return re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)


def masks_among(files: Iterable[str]) -> list[str]:
    """Those of some image files that are masks, labels or thumbnails of others of them, by their names.

    They lie in a folder of such a name beside one of photographs, where all folders have names of this kind; or they
    differ from a photograph only in such words of their own name and their folders'.
    """
    names = list(files)
    hinted = {f for f in names if HINT.search(f.lower())}
    if not hinted:
        return []
    folders = _mask_folders({_folder(f) for f in names})
    doubtful = {f for f in hinted if _folder(f) not in folders and _is_doubtful(f)}
    seen: dict[str, Key] = {}
    keys = {f: (*_folder_key(f, seen), _plain(_stem(f))) for f in doubtful}
    near = {key[:-1] for key in keys.values()}
    photographs: set[Key] = set()
    for f in names:
        if keys and f not in doubtful and _folder(f) not in folders and (key := _folder_key(f, seen)) in near:
            photographs |= {(*key, _stem(f).replace(" ", "")), (*key, _plain(_stem(f)))}
    return [f for f in names if (f in keys and keys[f] in photographs) or (f in hinted and _folder(f) in folders)]


def _mask_folders(folders: set[str]) -> set[str]:
    """Folders of masks beside folders of photographs, and all below them."""
    children: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        for path in _upwards(folder):
            children[_folder(path)].add(path)
    found: set[str] = set()
    for paths in children.values():
        words = {path: words_of(path.rpartition("/")[2]) for path in paths}
        masks = {path for path, ws in words.items() if any(map(MASK.fullmatch, ws))}
        others = [ws for path, ws in words.items() if path not in masks]
        if others and all(any(IMAGES.fullmatch(w) or SPLITS.fullmatch(w) for w in ws) for ws in others):
            found |= {p for p in masks if all(_tells_apart(w) or SPLITS.fullmatch(w) for w in words[p])}
    return {f for f in folders if not found.isdisjoint(_upwards(f))} if found else set()


def _folder(file: str) -> str:
    return file.rpartition("/")[0]


def _upwards(folder: str) -> Iterator[str]:
    """A folder and those above it."""
    while folder:
        yield folder
        folder = _folder(folder)


def _is_doubtful(file: str) -> bool:
    words = words_of(file.rpartition(".")[0])
    return RESIZED.search(_stem(file)) is not None or any(map(MASK.fullmatch, words))


def _folder_key(file: str, seen: dict[str, Key]) -> Key:
    """The folders above a file, without words that tell its photographs and masks apart."""
    folder = _folder(file)
    if folder not in seen:
        kept = (" ".join(w for w in words_of(part) if not _tells_apart(w)) for part in folder.split("/"))
        seen[folder] = tuple(filter(None, kept))
    return seen[folder]


def _stem(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0]


def _plain(stem: str) -> str:
    """What a photograph and its masks share in their names: `a` of `a_mask_2`, `mask_a`, `image_a` and `a_rgb`."""
    stem = _apart(RESIZED.sub("", stem))
    for word in (BEHIND, BEFORE):
        stem = word.sub(lambda m: "" if _tells_apart(m[1].lower()) else m[0], stem)
    return stem.replace(" ", "")


def _tells_apart(word: str) -> bool:
    return bool(MASK.fullmatch(word) or IMAGES.fullmatch(word) or BESIDE.fullmatch(word))
