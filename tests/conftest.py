"""Fixtures of all tests. Each imports what it needs when it is used: a test of a pure room starts without Ray or S3."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from faulty_proxy import FaultyProxy
    from models import MakeClip, MakeModel
    from s3_server import S3Server

    from upl_ray.upl.clip_model import ClipModel


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a model with `make_model("name", text={...}, ...)`; see `models.write_model`."""
    from models import write_model

    return lambda name="model", **changes: write_model(tmp_path / name, **changes)


@pytest.fixture
def make_clip(make_model: MakeModel) -> MakeClip:
    """Write a model and load it through the real path: find, hash, check, load."""
    from models import resolve_folder

    from upl_ray.upl.clip_model import ClipModel

    return lambda name="model", **changes: ClipModel(resolve_folder(make_model(name, **changes)))


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """One classic CLIP for tests that need any model; never changed by them."""
    from models import resolve_folder, write_model

    from upl_ray.upl.clip_model import ClipModel

    return ClipModel(resolve_folder(write_model(tmp_path_factory.mktemp("clip") / "small")))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that this process, its children and the workers of `cluster` find in their environment."""
    from s3_server import S3Server

    server = S3Server(tmp_path_factory.mktemp("s3") / "requests.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture(scope="session")
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    """What stands between S3 and the workers of `cluster`: transparent until a test gives it rules."""
    from faulty_proxy import FaultyProxy

    server = FaultyProxy(s3.endpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server
    server.stop()


@pytest.fixture(scope="session")
def cluster(proxy: FaultyProxy) -> Iterator[None]:
    """A real Ray cluster of this machine, with four CPU slots however many cores there are."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def short_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty digits, three bad files and twenty scored digits; never changed."""
    from worlds import digit_world

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
    from worlds import SHORT, job_config

    from upl_ray.pipeline.main import run

    return run(job_config(short_world, tmp_path_factory.mktemp("short-run"), **SHORT))
