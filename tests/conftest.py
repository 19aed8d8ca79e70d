"""Small real open_clip models with random weights, an S3 server on loopback, and a Ray cluster that reaches it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import ray
import safetensors.torch
import torch
from faulty_proxy import FaultyProxy
from report_pages import FILE_NAMES, NASTY, write_images
from s3_server import S3Server
from worlds import SHORT, digit_world, job_config

from benchmarks.synthetic_run import SyntheticRun
from upl_ray.backbones import resolve
from upl_ray.clip_model import ClipModel
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Backbone
from upl_ray.report.page import write_report
from upl_ray.storage import Store

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}

MakeModel = Callable[..., Path]
MakeClip = Callable[..., ClipModel]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_model(
    folder: Path,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    preprocess: dict[str, Any] | None = None,
    seed: int = 0,
    **model: Any,
) -> Path:
    """An open_clip folder with random weights, no parameter of which is zero."""
    model_cfg: dict[str, Any] = {
        "embed_dim": 24,
        "vision_cfg": {**VISION, **(vision or {})},
        "text_cfg": {**TEXT, **(text or {})},
    }
    model_cfg |= model
    size = model_cfg["vision_cfg"]["image_size"]
    folder.mkdir(parents=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"size": size, **(preprocess or {})}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        network = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        for name, parameter in network.named_parameters():
            if not name.startswith("logit_"):
                parameter += 0.05 * torch.randn_like(parameter)
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in network.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a model with `make_model("name", text={...}, ...)`; see `write_model`."""
    return lambda name="model", **changes: write_model(tmp_path / name, **changes)


@pytest.fixture
def make_clip(make_model: MakeModel) -> MakeClip:
    """Write a model and load it through the real path: find, hash, check, load."""
    return lambda name="model", **changes: ClipModel(resolve_folder(make_model(name, **changes)))


def resolve_folder(folder: Path) -> ClipSpec:
    return resolve(Backbone(model=f"local-dir:{folder}"))


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """One classic CLIP for tests that need any model; never changed by them."""
    return ClipModel(resolve_folder(write_model(tmp_path_factory.mktemp("clip") / "small")))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that this process, its children and the workers of `cluster` find in their environment."""
    server = S3Server(tmp_path_factory.mktemp("s3") / "requests.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture(scope="session")
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    """What stands between S3 and the workers of `cluster`: transparent until a test gives it rules."""
    server = FaultyProxy(s3.endpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server
    server.stop()


@pytest.fixture(scope="session")
def cluster(proxy: FaultyProxy) -> Iterator[None]:
    """A real Ray cluster of this machine, with four CPU slots however many cores there are."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def short_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty digits, three bad files and twenty scored digits; never changed."""
    return digit_world(tmp_path_factory.mktemp("short"), 8, 2)


@pytest.fixture(scope="session")
def short_bucket(s3: S3Server, short_world: Path) -> str:
    """A bucket that holds the short world under `corpus` and `scored`; runs write beside it."""
    name = s3.create_bucket()
    for part in ("corpus", "scored"):
        s3.upload(short_world / part, name, part)
    return name


@pytest.fixture(scope="session")
def short_run(cluster: None, short_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The short job on one node and local files, which runs elsewhere must equal; never changed."""
    from upl_ray.pipeline import run

    return run(job_config(short_world, tmp_path_factory.mktemp("short-run"), **SHORT))


@pytest.fixture(scope="session")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A reported run whose every name is an attempt to break the page; found by each test as it was made."""
    folder = tmp_path_factory.mktemp("nasty")
    write_images(folder / "images", NASTY, FILE_NAMES)
    bad = f"{NASTY[1]}/<img src=x onerror=alert(2)>.png"
    run = SyntheticRun(
        folder / "run", folder / "images", NASTY, starved=(4,), rejected={bad: "damaged image: <b>boo</b>"}
    )
    store = run.write()
    write_report(store)
    return store
