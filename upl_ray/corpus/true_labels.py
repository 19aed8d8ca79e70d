"""True labels of images: used for scores, and to name the classes, never to make pseudo-labels."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from upl_ray.config.classnames import check_classnames, clean_classname, without_numbers
from upl_ray.corpus.archives import LABEL_COLUMNS
from upl_ray.corpus.masks import MASK, SPLITS, words_of
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.errors import ConfigError, quoted
from upl_ray.storage.store import read_ahead
from upl_ray.upl.metrics import UNLABELED, Labels, class_numbers, true_labels

log = logging.getLogger(__name__)

NUMBER = re.compile(r"([0-9]+)(\.0)?")  # of a class, as tables hold it
# Words of folders' names; those of numbered parts stand before a number: `fold_1`.
DATA = re.compile(rf"data|(image|img|photo|picture|set)s?|jpe?gs?|pngs?|{MASK.pattern}")
NUMBERED_PART = re.compile(
    r"fold|split|part|batch|shard|chunk|vol(ume)?|session|folder|archive|export|data|"
    r"(image|img|photo|picture|annotation|label|set)s?"
)
SOURCES = {  # what to do where a rule finds no label
    "folders": "let the address lead to the folder above those of the classes",
    "column": f"call their column {' or '.join(LABEL_COLUMNS)}, in small letters and with text or numbers in it",
}
# Class numbers, as they are or behind a word, WordNet's, as ImageNet's folders have them, days and months, and numbers
# of cameras and phones (`100APPLE`, `202303_a`).
NUMBERED = re.compile(
    r"[\W_]*\d+(\.\d+)?[\W_]*|n\d+|(class|category|cls|label|id)[-_ ]?\d+|"
    r"(19|20)\d\d[-_. ]?[01]\d([-_. ]?[0-3]\d)?_*[a-z]?|"
    r"1\d\d(APPLE|CANON|NIKON|MEDIA|MSDCF|OLYMP|ANDRO|_?PANA|_?FUJI)",
    re.IGNORECASE,
)
NO_CLASS = re.compile(r"test(ing)?|val(idation)?|unlabell?ed", re.IGNORECASE)  # as `train` and `valid` may be
# What systems call a second folder of a name.
COPY = re.compile(r"(.*?\S)(?: - (?:Copy|Kopie|Copie|Copia)(?: ?\(\d+\))?| copy(?: \d+)?| ?\(\d+\))")
CAMERA = re.compile(r"([1-9]\d\d)([A-Z0-9_]{5})")  # numbers and five signs, by the rule for cameras (DCF)
LETTERED = re.compile(r"([a-z])0*(\d+)", re.IGNORECASE)  # c0, c1, c2


def true_labels_of(corpus: Corpus, shard: Shard, ids: list[str], rule: str, classnames: tuple[str, ...]) -> Labels:
    """True classes [N] of images of a shard; UNLABELED where there are none, and everywhere by the rule `none`."""
    if rule == "none":
        return np.full(len(ids), UNLABELED)
    given = corpus.labels(shard, rule)
    return true_labels([given[i] for i in ids], classnames)


def check_labels(corpus: Corpus, rule: str, field: str, classnames: tuple[str, ...]) -> Counter[str]:
    """Check that labels of a corpus are classes, unless the rule is `none`.

    Returns:
        The labels that are no class, with their numbers of images, which are not scored; "" for images without one.

    Raises:
        ConfigError: none is a class, so that nothing would be scored; they are numbers that count from 1; or partly
            names and partly numbers.
    """
    if rule == "none":
        return Counter()
    counts = _count_labels(corpus, rule)
    labels = list(counts)
    strangers = [x for x, true in zip(labels, true_labels(labels, classnames), strict=True) if true == UNLABELED]
    places, known = class_numbers(classnames), frozenset(classnames)
    found = (NUMBER.fullmatch(x) for x in labels if places and clean_classname(x) not in known)
    numbers = sorted(int(m[1]) for m in found if m)
    named = next((x for x in labels if clean_classname(x) in known), None)
    numbered = next((x for x in labels if x in places), None)
    if named is not None and numbered is not None:
        raise ConfigError(
            f"{field}.labels of {corpus.name} are partly names, {quoted(named)}, and partly numbers, "
            f"{quoted(numbered)}, which may count otherwise than `classnames`; make them all names."
        )
    if named is None and numbers and numbers[0] > 0 and numbers[-1] == len(classnames):
        raise ConfigError(
            f"{field}.labels of {corpus.name} are numbers up to {numbers[-1]} without 0, but classes are numbered from "
            f"0 to {len(classnames) - 1}; subtract 1, or give names."
        )
    if named is None and numbers and numbers[0] > 0:
        log.warning(
            "%-12s labels are numbers from %d to %d, taken as counted from 0: %d is %r",
            *(field, numbers[0], numbers[-1], numbers[0], classnames[min(numbers[0], len(classnames) - 1)]),
        )
    if not labels:
        raise ConfigError(
            f"{field}.labels is {rule!r} for {corpus.name}, but no image has a label; {SOURCES[rule]}, or set "
            f"{field}.labels to none."
        )
    if len(strangers) == len(labels):
        raise ConfigError(
            f"{field}.labels is {rule!r} for {corpus.name}, but no label is a class name; the first label is "
            f"{quoted(labels[0])}, and the first class is {quoted(classnames[0])}. Make them equal, or set "
            f"{field}.labels to none."
        )
    without = corpus.images - counts.total()
    return Counter({x: counts[x] for x in strangers} | ({"": without} if without else {}))


def folder_names(corpus: Corpus, rule: str = "none") -> tuple[str, ...]:
    """Class names from the labels that the source gives by a rule, as names of sub-folders: unique, sorted, checked.

    Numbers before the names, as in `001.Laysan_Albatross`, only order them.

    Raises:
        ConfigError: they are parts of a data set, or numbers; or see `check_classnames`.
    """
    return class_folders(_count_labels(corpus, rule), corpus.roots)


def class_folders(labels: Iterable[str], roots: Sequence[str]) -> tuple[str, ...]:
    """The same from the labels themselves, of images at these addresses."""
    names, where = sorted(labels), ", ".join(roots)
    shown = ", ".join(map(quoted, names[:3]))
    if not names:
        raise ConfigError(
            f"classnames is `folders`, but no image under {where} has a label, as of a sub-folder; let corpus.uri lead "
            f"to the folder above those of the classes, or list the class names."
        )
    if copied := next((n for n in names if (m := COPY.fullmatch(n)) and m[1] in names), None):
        raise ConfigError(
            f"classnames is `folders`, and {quoted(copied)} under {where} is called as a copy of another folder; put "
            f"the images of one class into one folder, or list the class names."
        )
    if len({name.partition("=")[0] for name in names}) == 1 and all("=" in name for name in names):
        raise ConfigError(
            f"classnames is `folders`, which gives {shown} for {where}: partitions of a table; rename the folders, or "
            f"list the class names."
        )
    if parts := _parts_among(names):
        photographs = [n for n in parts if not any(map(MASK.fullmatch, words_of(n)))] or parts
        one = next((n for n in photographs if "train" in n.lower()), photographs[0])
        raise ConfigError(
            f"classnames is `folders`, which gives {', '.join(map(quoted, parts[:3]))} for {where}: names of "
            f"parts of a data set. Let corpus.uri lead to one ({roots[0]}/{one}), or list the class names."
        )
    if part := next((n for n in names if NO_CLASS.fullmatch(n)), None):
        raise ConfigError(
            f"classnames is `folders`, and {quoted(part)} under {where} is called as a part of a data set; put it "
            f"beside that folder, choose the others by a pattern, or list the class names."
        )
    if _are_numbers(names):
        raise ConfigError(
            f"classnames is `folders`, which gives {shown}{', ...' if len(names) > 3 else ''} for {where}: "
            f"numbers that say nothing to a model. List the names in the order of their numbers, or in a text file."
        )
    plain = without_numbers(names)
    if plain != names:
        given, name = next((g, n) for g, n in zip(names, plain, strict=True) if g != n)
        log.info("%-12s numbers in front of their folders are left out: %r is %r", "classes", given, name)
    return check_classnames(plain)


def _parts_among(names: list[str]) -> list[str]:
    """Names of parts of a data set: two or more of the same, `seg_train` and `seg_test`, or all if they are like that.

    They are if each is a part (`Training`, `PrivateTest`) or begins with a word for all (`images_new`), one of them
    surely, or if they say nothing (`images`).
    """
    parts: dict[tuple[str, ...], list[str]] = defaultdict(list)  # of what: the words that are left
    bare, all_parts, surely = [], True, False
    for name in names:
        words = words_of(name)
        rest = [w for w in words if not SPLITS.fullmatch(w) and not DATA.fullmatch(w)]
        is_part = len(rest) < sum(not DATA.fullmatch(w) for w in words)
        if rest in (["class"], ["object"], ["ground"]) and len(words) > 1:  # SegmentationClass, ground_truth
            rest = []
        if name[-1].isdecimal() and words and NUMBERED_PART.fullmatch(words[-1]):  # fold_1, images_part_1
            rest, is_part = [w for w in rest if not NUMBERED_PART.fullmatch(w)], True
        surely |= is_part and (not rest or len(rest) + 1 < len(words))
        all_parts &= is_part or (len(words) > 1 and re.fullmatch("data|im(age|g)s?", words[0]) is not None)
        if is_part:
            parts[tuple(rest)].append(name)
        bare += [name] if words and not rest and not NUMBERED.fullmatch(name) else []
    several = [name for of_same in parts.values() if len(of_same) > 1 for name in of_same]
    return several or (bare if len(bare) == len(names) else names if all_parts and surely else [])


def _are_numbers(names: list[str]) -> bool:
    """Whether names are numbers, or count from 0, or behind a `c`, behind one letter: `c0`, `c1`.

    They are if most are and count from 0 or 1: `0`, `1`, `other`.
    """
    lettered = [m for m in map(LETTERED.fullmatch, names) if m]
    letters, numbers = {m[1].lower() for m in lettered}, sorted(int(m[2]) for m in lettered)
    counted = numbers == list(range(len(names))) or (letters == {"c"} and numbers == list(range(1, len(names) + 1)))
    cameras = [m for m in map(CAMERA.fullmatch, names) if m]
    folders = [int(m[1]) for m in cameras]
    if (
        len(cameras) == len(names)
        and len({m[2] for m in cameras}) == 1
        and max(folders) - min(folders) < 2 * len(names)
    ):
        return True
    plain = [int(m[0]) for name in names if NUMBERED.fullmatch(name) and (m := re.search(r"\d+", name))]
    if 2 * len(plain) > len(names) and sorted(plain) in (list(range(len(plain))), list(range(1, len(plain) + 1))):
        return True
    return all(map(NUMBERED.fullmatch, names)) or (counted and len(letters) == 1 < len(names))


def _count_labels(corpus: Corpus, rule: str) -> Counter[str]:
    """Labels that the source gives, in the order of the listings, with their numbers of images."""
    counts: Counter[str] = Counter()
    given = read_ahead(corpus.shards, lambda shard: corpus.labels(shard, rule))
    for shard, labels in zip(corpus.shards, given, strict=True):
        counts.update(x for i, x in labels.items() if x and i not in shard.removed)
    return counts
