"""Rules for class names (pure)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from upl_ray.errors import ConfigError, quoted

# A class' number or WordNet's, and its name: `001.Laysan_Albatross`, `n02085620-Chihuahua`, `3: cat`.
NUMBERED = re.compile(r"\s*[\[(]?(n\d{8}|\d+)\s*([-._,;:)\]\s])\s*(\S*[^\W\d_].*)")

# Joiners and variants, unless they stand behind another character than ASCII's or make a keycap; tags but in flags.
UNSEEN = re.compile(
    "(?:^|[\\x00-\\x7f])[\u034f\u200c\u200d\ufe00-\ufe0f](?!\u20e3)|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]"
)
SEEN = re.compile("[\u200c\u200d\U000e0020-\U000e007f\u0600-\u0605\u06dd\u070f\u08e2\U000110bd\U000110cd]")


def clean_classname(name: str) -> str:
    """The class name as a prompt has it: `_` becomes a space (CoOp).

    Names of folders that macOS has written hold letters and accents apart (NFD); they are put together (NFC).
    """
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split())


def behind_numbers(names: Sequence[str]) -> list[str] | None:
    """Names without the numbers of the classes, if that is what every one of them begins with.

    Numbers count from 0 or 1, are filled up with zeros, or are WordNet's: `2 stars` and `7 stars` are names.
    """
    found = [m for m in map(NUMBERED.fullmatch, names) if m]
    numbers, behind = [m[1] for m in found], [m[3] for m in found]
    if not names or len(found) < len(names) or len(set(behind)) < len(names) or len(set(numbers)) < len(names):
        return None
    if any(number.startswith("n") for number in numbers):
        return behind if all(number.startswith("n") for number in numbers) else None
    filled = any(n.startswith("0") for n in numbers) and len(set(map(len, numbers))) == 1 < len(numbers[0])
    counted = sorted(map(int, numbers)) in [list(range(first, first + len(names))) for first in (0, 1)]
    return behind if filled or counted else None


def without_numbers(folders: Sequence[str]) -> list[str]:
    """Names of class folders without the numbers that only order them.

    Those of a subset have gaps (`1_cat`, `2_dog`, `4_owl`), and some have no number (`00_cat`, `01_dog`, `background`).
    Numbers that are far apart say something: `20_limit`, `2012_BMW`.
    """
    found = {name: m for name in folders if (m := NUMBERED.fullmatch(name))}
    numbers, marks, behind = ([m[i] for m in found.values()] for i in (1, 2, 3))
    ordered = len(set(numbers)) == len(set(behind)) == len(found) and not any(n.startswith("n") for n in numbers)
    values = sorted(map(int, numbers)) if ordered else []
    near = bool(values) and values[0] <= 1 and values[-1] <= 2 * len(values) and not {"-", " "} & set(marks)
    near &= not any(m[2] == "." and m[3][0].isdecimal() and m[1][0] != "0" for m in found.values())  # 5.56x45
    names = behind if near else behind_numbers(list(found))
    if (
        names is None
        or 2 * len(found) <= len(folders)
        or not set(map(clean_classname, names)).isdisjoint(map(clean_classname, folders))
    ):
        return list(folders)
    turned = dict(zip(found, names, strict=True))
    return [turned.get(name, name) for name in folders]


def in_typographic_quotes(text: str) -> bool:
    """Whether a whole text stands in quotes of a word processor, which YAML does not take away."""
    return re.fullmatch("\\s*[\u201c\u201e].*[\u201c\u201d]\\s*", text) is not None


def has_unseen(text: str) -> bool:
    """Whether a text holds characters that cannot be seen, but give other tokens: marks of web pages and editors.

    Joiners and variants of scripts and emoji stand behind other characters than ASCII's.
    """
    return UNSEEN.search(text) is not None or any(
        unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and not SEEN.match(c) for c in text
    )


def check_classnames(names: list[str]) -> tuple[str, ...]:
    """Cleaned names, in the given order.

    Raises:
        ConfigError: fewer than two names, an empty name, one that stands twice or in quotes, or one with unseen
            characters.
    """
    cleaned = [clean_classname(n) for n in names]
    if "" in cleaned:
        raise ConfigError(f"Class name {cleaned.index('') + 1} of {len(names)} is empty; remove the line or name it.")
    if unseen := next((n for n in names if has_unseen(re.sub(r"[\t\r\n]+", " ", n).strip())), None):
        raise ConfigError(f"The class name {unseen!a} holds a character that cannot be seen; type the name again.")
    if in_quotes := next(filter(in_typographic_quotes, names), None):
        raise ConfigError(f"The class name {quoted(in_quotes)} stands in typographic quotes; type plain ones.")
    doubled = [name for name, count in Counter(cleaned).items() if count > 1]
    if doubled:
        raise ConfigError(f"The class name {quoted(min(doubled))} stands more than once; keep one of them.")
    if len(cleaned) < 2:
        only = f", {quoted(cleaned[0])}" if cleaned else ""
        raise ConfigError(
            f"The number of class names is {len(cleaned)}{only}; a classifier needs at least 2, one a line of a file."
        )
    return tuple(cleaned)
