"""Rules for class names (pure)."""

from __future__ import annotations

from collections import Counter

from upl_ray.errors import ConfigError, quoted


def clean_classname(name: str) -> str:
    """The class name as a prompt has it: `_` becomes a space (CoOp)."""
    return " ".join(name.replace("_", " ").split())


def check_classnames(names: list[str]) -> tuple[str, ...]:
    """Cleaned names, in the given order.

    Raises:
        ConfigError: fewer than two names, an empty name, or one that stands twice.
    """
    cleaned = [clean_classname(n) for n in names]
    if "" in cleaned:
        raise ConfigError(f"Class name {cleaned.index('') + 1} of {len(names)} is empty; remove the line or name it.")
    doubled = [name for name, count in Counter(cleaned).items() if count > 1]
    if doubled:
        raise ConfigError(f"The class name {quoted(min(doubled))} stands more than once; keep one of them.")
    if len(cleaned) < 2:
        raise ConfigError(f"There are {len(cleaned)} class names; a classifier needs at least 2.")
    return tuple(cleaned)
