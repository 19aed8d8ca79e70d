"""Masks, label images and thumbnails that lie beside the photographs they belong to.

To a listing they are images like others; how they and their folders are named gives them away: `images/` and `masks/`,
`JPEGImages/` and `SegmentationClass/`, `train/a.jpg` and `train_masks/a_mask.gif`, `a.tif` and `a_mask.tif`. Names may
mean other things, too, so the user is warned of them, and leaves them out.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

log = logging.getLogger(__name__)

# Words of names, in small letters. Of masks and the like:
TECHNICAL = re.compile(r"seg(mentation)?s?|annotations?|trimaps?|(ground)?truth|superpixels?")  # no thing has the name
MASK = re.compile(rf"masks?|gt|labels?|thumb(nail)?s?|{TECHNICAL.pattern}")
# Of photographs, and beside the others, which say nothing about what the images show:
IMAGES = re.compile(
    r"data|im(age|g)s?|photos?|pictures?|originals?|raw|rgb|frames?|scans?|inputs?|jpe?gs?|pngs?|tiffs?"
)
BESIDE = re.compile(r"ground|class|objects?|instances?|visuali[sz]ations?|fine|coarse|color|binary")
SPLITS = re.compile(
    r"train(ing|val)?|trn|val|valid(ation)?|dev|eval(uation)?|holdout|test(ing)?|tst|unlabell?ed|extra|"
    r"calib(ration)?|minival|query|gallery"
)
HINT = re.compile(r"mask|seg|annotation|trimap|truth|gt|label|superpixel|thumb|\dx\d")  # looked for first, in millions
RESIZED = re.compile(r"-(\d{3,4}x\d{2,4}|\d{2,4}x\d{3,4})$")  # as web sites name copies of `a.jpg`: `a-150x150.jpg`
BEFORE = re.compile(r"^([a-z]+)(?=[\W\d_])[\W_]*(?=\w)", re.IGNORECASE)
BEHIND = re.compile(r"(?<=.)[\W_]([a-z]+)(?:[\W_]?\d+)?$", re.IGNORECASE)

Key = tuple[str, ...]


def warn_of_masks(files: Iterable[str], where: str) -> None:
    """Warn if some image files under an address are named like masks, labels or thumbnails of others of them."""
    if masks := masks_among(files):
        log.warning(
            "%-12s %d of the images under %s are named like masks or thumbnails of others, such as %s; they count as "
            "photographs, unless a pattern or a manifest leaves them out (docs/image-sources.md)",
            *("images", len(masks), where, min(masks)),
        )


def words_of(name: str) -> list[str]:
    """Words of a file's or folder's name, in small letters: `SegmentationClass` has two, as `seg_train` does."""
    return re.findall(r"[^\W\d_]+", _apart(name).lower())


def _apart(name: str) -> str:
    return re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)


def masks_among(files: Iterable[str]) -> list[str]:
    """Those of some image files that are masks, labels or thumbnails of others of them, by their names.

    They lie in a folder of such a name beside one of photographs, where all folders have names of this kind; or they
    differ from a photograph only in such words, as most photographs of a folder have one: a shop's `face.jpg` and
    `face_mask.jpg` stay.
    """
    names = list(files)
    hinted = {f for f in names if HINT.search(f.lower())}
    if not hinted:
        return []
    folders = _mask_folders({_folder(f) for f in names})
    inside = {f for f in hinted if _folder(f) in folders}
    shared: dict[str, tuple[Key, bool]] = {}
    keys = {f: key for f in hinted - inside if (key := _photograph_of(f, shared))}
    near, stems = {key[:-1] for key in keys.values()}, {key[-1] for key in keys.values()}
    photographs: Counter[Key] = Counter()
    named: dict[Key, str] = {}
    for f in names:
        if keys and f not in keys and f not in inside and (folder := _shared_folder(f, shared)[0]) in near:
            photographs[folder] += 1
            stem = _stem(f)
            forms = {stem.replace(" ", ""), *([_plain(stem)] if IMAGES.search(stem.lower()) else [])}
            named |= {(*folder, form): f for form in forms & stems}
    of = {f: named[key] for f, key in keys.items() if key in named}
    masked = Counter(_shared_folder(f, shared)[0] for f in set(of.values()))
    beside = {f for f in of if 2 * masked[keys[f][:-1]] > photographs[keys[f][:-1]]}
    return [f for f in names if f in inside or f in beside]


def _photograph_of(file: str, shared: dict[str, tuple[Key, bool]]) -> Key | None:
    """The key of the photograph that a file is a mask of, if its name is one; see `_shared_folder` and `_plain`."""
    folder, of_mask = _shared_folder(file, shared)
    stem = _stem(file)
    if of_mask or RESIZED.search(stem) or any(map(MASK.fullmatch, words_of(stem))):
        return (*folder, _plain(stem))
    return None


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


def _shared_folder(file: str, seen: dict[str, tuple[Key, bool]]) -> tuple[Key, bool]:
    """The folders above a file that its photograph and its masks share, and whether one of them is of masks.

    `images/x`, `masks/x` and `x` are one, `train/x` and `train_masks/x`, too, but a `ski_mask` is another thing than a
    `ski`.
    """
    folder = _folder(file)
    if folder not in seen:
        parts: list[str] = []
        of_masks = False
        for part in folder.split("/"):
            words, name = words_of(part), _apart(part).lower()
            if all(map(_tells_apart, words)) or any(SPLITS.fullmatch(w) or TECHNICAL.fullmatch(w) for w in words):
                name = re.sub(r"[^\W\d_]+", lambda m: "" if _tells_apart(m[0]) else m[0], name)
                of_masks |= any(map(MASK.fullmatch, words))
            parts.append(" ".join(filter(None, re.split(r"[\W_]+", name))))
        seen[folder] = tuple(filter(None, parts)), of_masks
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
