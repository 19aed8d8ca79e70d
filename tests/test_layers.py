"""The rings of the design: a pure core, Ray at the rim, nothing heavy where the command line starts."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "upl_ray"
MODULES = sorted(p for folder in (".", "datasets", "methods") for p in (PACKAGE / folder).glob("*.py"))
REPORT = sorted((PACKAGE / "report").glob("*.py"))
WITH_RAY = {"embed", "encode_text", "pools", "label", "selection", "views", "train", "telemetry"}
WITH_RAY |= {"ray_cluster", "preflight", "pipeline", "runs", "watch"}
WITHOUT_TORCH = (
    *("config", "schema", "artifacts", "images", "pseudo_labels", "metrics"),
    *("corpus", "sources", "archives", "manifests", "reading", "web", "clip_spec", "progress", "score", "summary"),
    *("estimate", "speeds", "workload", "section", "addresses", "footprint", "passes", "trials"),
    *("predict_config", "command_line", "drift", "figures", "growth", "predictions", "rejected", "model_config"),
    *("study_config", "samples", "comparison", "published", "datasets.layouts", "datasets.splits", "datasets.open"),
)


METHODS = tuple(f"methods.{m}" for m in ("few_shot", "linear_probe", "clip_adapter", "tip_adapter", "prompts"))


def imports(path: Path) -> set[str]:
    """Top-level names of everything a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def siblings(path: Path) -> set[str]:
    """Modules of this package that a file imports, `demo.locate` for a nested one."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "upl_ray":
            inner = node.module.removeprefix("upl_ray").lstrip(".")
            found |= {inner} if inner else set()
            found |= {f"{inner}.{alias.name}".lstrip(".") for alias in node.names}
    return found


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Qualified line and length of every function, its decorators left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{path.name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def dotted(path: Path) -> str:
    """`label`, or `datasets.open` for a module of a sub-package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_the_modules_of_the_rings_exist() -> None:
    assert WITH_RAY | set(WITHOUT_TORCH) <= {dotted(p) for p in MODULES}


def test_ray_is_imported_at_the_rim_only() -> None:
    assert {dotted(p) for p in MODULES if "ray" in imports(p)} <= WITH_RAY
    assert [p.name for p in [*(PACKAGE / "demo").glob("*.py"), *REPORT] if "ray" in imports(p)] == []


def test_reports_need_no_model_but_for_the_words_that_the_job_stores() -> None:
    heavy = {"torch", "torchvision", "open_clip", "safetensors"}
    assert [p.stem for p in REPORT if imports(p) & heavy] == ["words"]
    assert [p.stem for p in REPORT if "report.words" in siblings(p)] == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_torch_is_not_imported_by(module: str) -> None:
    assert imports(PACKAGE / f"{module.replace('.', '/')}.py") & {"torch", "torchvision", "open_clip"} == set()


def test_importing_the_light_modules_loads_neither_torch_nor_ray() -> None:
    light = ", ".join(f"upl_ray.{m}" for m in WITHOUT_TORCH)
    code = f"import sys, {light}; print(sorted({{'torch', 'ray', 'open_clip', 'sklearn'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module",
    ["classifier", "prompt_learner", "inputs", "score", "passes", "report.page", "report.compare", *METHODS],
)
def test_ray_is_not_needed_by_anything_below(module: str) -> None:
    seen, todo = set(), [PACKAGE / f"{module.replace('.', '/')}.py"]
    while todo:
        path = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        assert "ray" not in imports(path), f"{module} reaches {path.name}"
        todo += [PACKAGE / f"{name.replace('.', '/')}.py" for name in siblings(path)]
    assert len(seen) > 1


@pytest.mark.parametrize("path", [*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")], ids=lambda p: p.stem)
def test_a_file_fits_one_reading_and_pickles_nothing(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= (40 if path.parent.name == "jobs" else 300)
    assert [name for name, lines in functions(path) if lines > 60] == []
    assert imports(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} == set()
    assert not re.search(r"(?<!safetensors\.)torch\.(load|save)\(", path.read_text())


@pytest.mark.parametrize("path", [*MODULES, *REPORT], ids=dotted)
def test_nothing_happens_at_import(path: Path) -> None:
    """Module level holds definitions and constants; a call there makes a constant, a logger or a type."""
    for node in ast.parse(path.read_text()).body:
        definition = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        allowed = (ast.Import, ast.ImportFrom, *definition, ast.Assign, ast.AnnAssign)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert isinstance(node, allowed) or docstring, f"{path.name}:{node.lineno}"
