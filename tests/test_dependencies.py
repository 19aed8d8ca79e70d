"""Every package that is imported is declared in pyproject.toml, and all that an installation brings is pinned."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OPTIONAL = [r for extra in EXTRAS if extra != "dev" for r in EXTRAS[extra]]  # imported where they are used
DEV = [r for r in EXTRAS["dev"] if not r.startswith("upl-ray[")] + OPTIONAL
OURS = {"upl_ray", "jobs", "benchmarks", "tests", *(p.stem for p in (ROOT / "tests").rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def brought(requirements: list[str], extras: frozenset[str] = frozenset(), seen: set[str] | None = None) -> set[str]:
    """Names of all packages that some requirements bring to this machine, directly and indirectly."""
    seen = set() if seen is None else seen
    for required in map(Requirement, requirements):
        if required.marker and not any(required.marker.evaluate({"extra": e}) for e in (*extras, "")):
            continue
        key = f"{canonicalize_name(required.name)}[{','.join(sorted(required.extras))}]"
        if key not in seen:
            seen.add(key)
            about = importlib.metadata.distribution(required.name)
            brought(about.requires or [], frozenset(required.extras), seen)
    return {key.partition("[")[0] for key in seen}


def undeclared(folders: tuple[str, ...], packages: set[str]) -> set[str]:
    """Modules that are imported in some folders and belong to none of these packages."""
    owners = importlib.metadata.packages_distributions()
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    foreign = {name for path in files for name in imported(path)} - OURS - sys.stdlib_module_names
    assert len(foreign) > 10
    return {n for n in foreign if not {canonicalize_name(p) for p in owners.get(n, ())} & packages}


def test_every_import_of_the_package_is_declared() -> None:
    declared = {canonicalize_name(Requirement(r).name) for r in [*PROJECT["dependencies"], *OPTIONAL]}
    assert undeclared(("upl_ray", "jobs"), declared) == set()
    assert undeclared(("upl_ray", "jobs"), declared - {"torch"}) == {"torch"}


def test_the_developers_have_every_extra() -> None:
    (own,) = (Requirement(r) for r in EXTRAS["dev"] if r.startswith("upl-ray["))
    assert own.extras == EXTRAS.keys() - {"dev"}


def test_every_other_import_comes_with_the_developers_tools() -> None:
    assert undeclared(("tests", "benchmarks"), brought([*PROJECT["dependencies"], *DEV])) == set()


def test_every_package_is_pinned() -> None:
    needed = brought([*PROJECT["dependencies"], *DEV])
    assert len(needed) > 50
    pins = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert needed <= {canonicalize_name(n) for n in pins}
