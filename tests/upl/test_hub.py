"""The hub of published models, where nobody answers: its cache is used at once, and what is not there is refused."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from models import MakeModel

COMMIT = "0" * 40
RESOLVE = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from upl_ray.config.settings import Backbone
from upl_ray.upl.backbones import load_tokenizer, resolve_backbone
from upl_ray.upl.clip_model import ClipModel
spec = resolve_backbone(Backbone(model=sys.argv[1]))
load_tokenizer(spec.source)
print(ClipModel(spec, device="cpu").spec.weights_sha256)
"""


def resolve_offline(model: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A process that loads a model of a hub at whose address nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        hub = f"http://127.0.0.1:{closed.getsockname()[1]}"
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": hub, "PYTHONPATH": os.pathsep.join(sys.path)} | more
    return subprocess.run([sys.executable, "-c", RESOLVE, model], env=environment, capture_output=True, text=True)


def test_a_model_that_was_downloaded_before_needs_no_hub(make_model: MakeModel, tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(make_model(), place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    found = resolve_offline("hf-hub:org/tiny", tmp_path)
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.strip()) == 64
    assert "Retrying" not in found.stderr
    assert "only what is in the cache is used" in found.stderr


def test_a_model_that_was_not_is_refused_without_a_wait(tmp_path: Path) -> None:
    found = resolve_offline("hf-hub:org/tiny", tmp_path)
    assert "ConfigError: The model 'hf-hub:org/tiny' cannot be read" in found.stderr
    assert "Retrying" not in found.stderr


@pytest.mark.parametrize("address", ["hf-mirror.com", "ftp://hub"])
def test_an_address_of_a_hub_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    found = resolve_offline("hf-hub:org/tiny", tmp_path, HF_ENDPOINT=address)
    assert f"HF_ENDPOINT {address!r} is no address; write https://" in found.stderr
    assert "Retrying" not in found.stderr


def test_a_proxy_that_does_not_answer_is_named(tmp_path: Path) -> None:
    found = resolve_offline(
        "hf-hub:org/tiny", tmp_path, HF_ENDPOINT="http://hub.example", http_proxy="http://u:p@127.0.0.1:9"
    )
    assert "the proxy 127.0.0.1:9 cannot be reached" in found.stderr
    assert "Retrying" not in found.stderr
