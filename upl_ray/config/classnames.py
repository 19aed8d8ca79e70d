"""Rules for class names (pure)."""

from __future__ import annotations

import unicodedata
from collections import Counter

from upl_ray.errors import ConfigError, quoted


def clean_classname(name: str) -> str:
    """The class name as a prompt has it: `_` becomes a space (CoOp).

    Names of folders that macOS has written hold letters and accents apart (NFD); they are put together (NFC).
    """
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split())


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) == "Cc" or character in "\u200b\u2060\ufeff"


def check_classnames(names: list[str]) -> tuple[str, ...]:
    """Cleaned names, in the given order.

    Raises:
        ConfigError: fewer than two names, an empty name, one that stands twice, or one with unseen characters.
    """
    cleaned = [clean_classname(n) for n in names]
    if "" in cleaned:
        raise ConfigError(f"Class name {cleaned.index('') + 1} of {len(names)} is empty; remove the line or name it.")
    if unseen := next((name for name in cleaned if any(map(_is_unseen, name))), None):
        raise ConfigError(f"The class name {unseen!a} holds a character that cannot be seen; type the name again.")
    doubled = [name for name, count in Counter(cleaned).items() if count > 1]
    if doubled:
        raise ConfigError(f"The class name {quoted(min(doubled))} stands more than once; keep one of them.")
    if len(cleaned) < 2:
        only = f", {quoted(cleaned[0])}" if cleaned else ""
        raise ConfigError(
            f"The number of class names is {len(cleaned)}{only}; a classifier needs at least 2, one a line of a file."
        )
    return tuple(cleaned)
