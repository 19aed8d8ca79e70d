"""docs/dependencies.md names everything that an installation brings, in its version, with a licence."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"^\| (\S+) +\| (\S+) +\| (.+?) +\|", re.MULTILINE)


def installed(
    requirements: list[str], extras: frozenset[str] = frozenset(), seen: set[tuple[str, frozenset[str]]] | None = None
) -> dict[str, str]:
    """Name and version, here, of what some requirements bring with them."""
    seen = set() if seen is None else seen
    found: dict[str, str] = {}
    for required in map(Requirement, requirements):
        if required.marker and not any(required.marker.evaluate({"extra": e}) for e in (*extras, "")):
            continue
        about, wanted = importlib.metadata.distribution(required.name), frozenset(required.extras)
        found[canonicalize_name(required.name)] = about.version
        if (required.name, wanted) not in seen:
            seen.add((required.name, wanted))
            found |= installed(about.requires or [], wanted, seen)
    return found


@pytest.fixture(scope="module")
def needed() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return installed(project["dependencies"])


def test_every_package_is_listed_with_its_version_and_licence(needed: dict[str, str]) -> None:
    lines = LINE.findall((ROOT / "docs/dependencies.md").read_text())
    listed = {canonicalize_name(name): (version, licence) for name, version, licence in lines}
    assert len(needed) > 50
    assert {n: listed.get(n, ("",))[0] for n in needed} == needed
    assert not [n for n in needed if listed[n][1] in ("UNKNOWN", "")]


def test_every_package_is_pinned(needed: dict[str, str]) -> None:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert needed.keys() <= {canonicalize_name(n) for n in pins}
