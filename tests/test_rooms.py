"""The rooms of the package: imports strictly downward, Ray at the rim, nothing heavy where the command line starts."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "upl_ray"
# From the bottom up; rooms on one floor do not know each other.
FLOORS = ("config", "storage", "demo", "upl", "corpus", "cluster report", "pipeline", "studies", "commands")
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
WITHOUT_RAY = ("config", "storage", "demo", "upl", "corpus", "report")
WITHOUT_TORCH = ("config", "storage", "corpus", "report")
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The folder right in the package; empty for what lies in the hall: errors and progress."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def dotted(path: Path) -> str:
    """`upl_ray.upl.images`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            found.add(node.module or "")
            found |= {
                f"{node.module}.{alias.name}" for alias in node.names if (node.module or "").startswith("upl_ray")
            }
    return found


def rooms_used(path: Path) -> set[str]:
    """The rooms that a module imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("upl_ray.")} & FLOOR.keys()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Qualified line and length of every function, its decorators left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{path.name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def test_every_module_lies_in_a_room() -> None:
    assert {room_of(p) for p in MODULES} - {""} == FLOOR.keys()
    assert sorted(p.stem for p in PACKAGE.glob("*.py")) == ["__init__", "__main__", "errors", "progress"]


def test_imports_lead_downward() -> None:
    upward = {
        f"{dotted(p)} imports {room}"
        for p in MODULES
        if (own := room_of(p))
        for room in rooms_used(p) - {own}
        if FLOOR[room] >= FLOOR[own]
    }
    assert upward == set()
    assert {room for name in ("errors", "progress") for room in rooms_used(PACKAGE / f"{name}.py")} == set()


@pytest.mark.parametrize(("rooms", "heavy"), [(WITHOUT_RAY, {"ray"}), (WITHOUT_TORCH, {"torch", "open_clip", "ray"})])
def test_pure_rooms_load_nothing_heavy(rooms: tuple[str, ...], heavy: set[str]) -> None:
    modules = [dotted(p) for p in MODULES if room_of(p) in rooms and "pretraining" not in p.parts]
    assert len(modules) > 10
    code = f"import sys, {', '.join(modules)}; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_load_classifier_of_the_package_loads_torch_when_it_is_used_and_never_ray() -> None:
    code = (
        "import sys, upl_ray; print(sorted({'torch', 'ray', 'pydantic'} & sys.modules.keys()))\n"
        "from upl_ray import load_classifier; print(load_classifier.__module__, 'ray' in sys.modules)\n"
        "print(hasattr(upl_ray, 'no_such_name'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == ["[]", "upl_ray.upl.classifier False", "False"]


@pytest.mark.parametrize("path", [*MODULES, *(ROOT / "jobs").glob("*.py")], ids=lambda p: p.stem)
def test_functions_fit_one_reading_and_nothing_is_pickled(path: Path) -> None:
    if path.parent.name == "jobs":
        assert len(path.read_text().splitlines()) <= 40
    assert [name for name, lines in functions(path) if lines > 60] == []
    tops = {name.split(".")[0] for name in imports(path)}
    assert tops & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} == set()
    assert not re.search(r"(?<!safetensors\.)torch\.(load|save)\(", path.read_text())


def opened_by_locale(source: str) -> list[int]:
    """Lines that read or write a text file in the locale's encoding. Ruff's PLW1514 misses paths it cannot type."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(k.arg in ("encoding", "fileobj") for k in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if isinstance(node.func, ast.Attribute) and name in ("read_text", "write_text"):
            lines.append(node.lineno)
        elif name == "open":
            owner = ast.unparse(node.func).rpartition(".")[0]
            values = [a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)]
            binary = any(isinstance(v, str) and re.fullmatch("[rwax]b[+]?|[rwax][+]b", v) for v in values)
            if not binary and owner not in ("tarfile", "Image", "os"):
                lines.append(node.lineno)
    return lines


def test_every_text_file_is_utf8_whatever_the_locale() -> None:
    files = [*MODULES, *(ROOT / "jobs").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    found = {str(f): lines for f in files if (lines := opened_by_locale(f.read_text(encoding="utf-8")))}
    assert found == {}


@pytest.mark.parametrize(
    "call", ["p.read_text()", "p.write_text(x)", "open(p)", "open(p, 'w')", "p.open('a')", "p.open()"]
)
def test_the_search_for_text_files_finds_them(call: str) -> None:
    assert opened_by_locale(call) == [1]
    assert opened_by_locale(call.replace(")", ", encoding='utf-8')").replace("(,", "(")) == []


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_happens_at_import(path: Path) -> None:
    """Module level holds definitions and constants; a call there makes a constant, a logger or a type."""
    for node in ast.parse(path.read_text()).body:
        definition = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        allowed = (ast.Import, ast.ImportFrom, *definition, ast.Assign, ast.AnnAssign, ast.If)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert isinstance(node, allowed) or docstring, f"{path.name}:{node.lineno}"
