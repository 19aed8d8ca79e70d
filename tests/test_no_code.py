"""Nothing that is read is run: no pickle, no eval, and poisoned files in every place where data is read."""

import ast
import base64
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from models import MakeModel, resolve_folder

from upl_ray.config.settings import Backbone, Source
from upl_ray.corpus.read import read_images
from upl_ray.corpus.shards import list_corpus
from upl_ray.errors import ConfigError, Damaged
from upl_ray.pipeline.members import read_checkpoint
from upl_ray.storage.step import Step
from upl_ray.storage.store import RAY_TYPES, Store
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.ensemble import FILE, load_ensemble
from upl_ray.upl.images import decode
from upl_ray.upl.rejection import Rejected

ROOT = Path(__file__).parent.parent
SOURCES = [p for folder in ("upl_ray", "jobs", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def offences(tree: ast.AST) -> list[str]:
    """What could run code that lies in data."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            found += [n for n in names if n.split(".")[0] in FORBIDDEN_IMPORTS]
        if not isinstance(node, ast.Call):
            continue
        called, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in FORBIDDEN_CALLS or options.get("shell") == "True" or options.get("allow_pickle") == "True":
            found.append(ast.unparse(node))
        if called == "torch.load" and options.get("weights_only") != "True":
            found.append(ast.unparse(node))
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and "_Loader" not in ast.unparse(node):
            found.append(ast.unparse(node))
    return found


def test_no_source_runs_data() -> None:
    assert len(SOURCES) > 50
    assert {str(p): o for p in SOURCES if (o := offences(ast.parse(p.read_text())))} == {}


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from joblib import load", "eval(x)", "torch.load(f)", "torch.load(f, weights_only=False)"),
        *("np.load(f, allow_pickle=True)", "subprocess.run(x, shell=True)", "yaml.load(x, yaml.Loader)"),
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert offences(ast.parse(line))


class Poison:
    """Its unpickling makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture
def poison(marker: Path) -> bytes:
    data = pickle.dumps(Poison(marker))
    pickle.loads(data)
    assert marker.exists()  # the poison works
    marker.unlink()
    return data


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_model.pt", "pytorch_model.bin"]
)
def test_weights_that_are_a_pickle_do_not_run(make_model: MakeModel, poison: bytes, marker: Path, name: str) -> None:
    folder = make_model("model")
    (folder / "open_clip_model.safetensors").unlink()
    (folder / name).write_bytes(poison)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it says, it must not run
        ClipModel(resolve_folder(folder))
    assert not marker.exists()


def test_a_weights_file_that_is_a_pickle_does_not_run(poison: bytes, marker: Path, tmp_path: Path) -> None:
    for name in ("weights.pt", "weights.bin", "weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(poison)
        with pytest.raises(Exception):  # noqa: B017, PT011
            ClipModel(resolve_backbone(Backbone(model="ViT-B-32", pretrained=str(tmp_path / name), quick_gelu=False)))
        assert not marker.exists()


def test_a_pickle_among_artifacts_or_images_does_not_run(poison: bytes, marker: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    step = Step(store, "members", "0" * 12)
    for name in (step.path("checkpoints/member-00.safetensors"), step.path("manifest.json"), FILE):
        store.write(name, poison)
    for read in (lambda: read_checkpoint(step, 0), step.manifest, lambda: load_ensemble(store.uri)):
        with pytest.raises(Damaged):
            read()
    with pytest.raises(Rejected):
        decode(poison)
    assert not marker.exists()


def test_parquet_of_images_with_a_poisoned_extension_type_does_not_run(
    cluster: None, poison: bytes, marker: Path, tmp_path: Path
) -> None:
    """Ray registers Arrow types that unpickle values or, on demand, their metadata; users' Parquet may claim one."""
    import ray.data  # noqa: F401  # the types are registered from here on

    for name in ("arrow_pickled_object", "arrow_tensor", "arrow_tensor_v2", "arrow_variable_shaped_tensor"):
        folder = tmp_path / name
        folder.mkdir()
        code = (
            "import sys, pyarrow as pa, pyarrow.parquet as pq\n"
            "poison = sys.stdin.buffer.read()\n"
            "claim = {'ARROW:extension:name': 'ray.data.' + sys.argv[1], 'ARROW:extension:metadata': poison}\n"
            "field = pa.field('image', pa.large_binary(), metadata=claim)\n"
            "pq.write_table(pa.table([pa.array([poison], field.type)], schema=pa.schema([field])), sys.argv[2])"
        )  # in a process without Ray: here it could not even be written unharmed
        subprocess.run([sys.executable, "-c", code, name, folder / "a.parquet"], input=poison, check=True)
        with pytest.raises(ConfigError, match=r"Ray's own types.*write plain columns"):
            list_corpus(Store(str(tmp_path / f"run-{name}")), Source(uri=str(folder)), 100)
        with pytest.raises(ConfigError, match="Ray's own types"):
            Store(str(folder)).read_table("a.parquet")
        assert not marker.exists()
    pq.read_table(tmp_path / "arrow_pickled_object" / "a.parquet").column("image").to_pylist()
    assert marker.exists()  # so it would be without the guard


def test_nothing_leaves_an_archive(tmp_path: Path, poison: bytes, marker: Path) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in ("../outside.png", "/etc/outside.png", "ok/inside.png", "code.pkl", "a/../../b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(poison)
            tar.addfile(info, io.BytesIO(poison))
        for kind, name in (
            (tarfile.SYMTYPE, "link.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.CHRTYPE, "device.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    before = set(tmp_path.rglob("*"))
    corpus = list_corpus(Store(str(tmp_path / "run")), Source(uri=str(folder)), 100)
    listing = corpus.listing(corpus.shards[0])
    links = ("link.png", "hard.png")
    assert sorted(listing["image_id"].to_pylist()) == sorted(
        f"a.tar!{n}" for n in ("../outside.png", "/etc/outside.png", "ok/inside.png", "a/../../b.png", *links)
    )
    read = read_images(corpus.shards[0].root, listing)
    for name, data in zip(listing["image_id"].to_pylist(), read, strict=True):  # bytes of the archive under odd names
        assert data == ("link in a tar archive" if name.removeprefix("a.tar!") in links else poison)
    new = set(tmp_path.rglob("*")) - before
    assert all(tmp_path / "run" in (p, *p.parents) for p in new)
    assert not marker.exists()


def test_rays_types_are_found_wherever_they_stand_in_base64() -> None:
    for before in range(9):
        for after in range(9):
            text = base64.b64encode(b"\x07" * before + b"ray.data." + b"\xf3" * after)
            assert any(t in text for t in RAY_TYPES[1:])
