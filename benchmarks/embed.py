"""The embedding step against a plain loop, and three backbones in one pass against three passes.

python -m benchmarks.embed --folder photos/ --images 512

Real photographs; RN50 with random weights at 224 px; RN50, RN101 and ViT-B-32 in one pass and in three; and so the
demo's three backbones. The plain loop is one process
with the same decoding and the same model, one thread for each core: read, decode, encode, chunk by chunk. Start-up
(of Ray Data and of models in actors) is measured by embedding one image and is left out of both sides' rates: on a
corpus it is seconds of hours. Rounds alternate between the sides.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import open_clip
import ray
import safetensors.torch
import torch

from benchmarks.measure import hardware, report, seconds_of
from upl_ray.config.settings import Backbone, Compute, Source
from upl_ray.corpus.shards import Corpus, list_corpus
from upl_ray.pipeline.features import decode_chunks, feature_step, make_features
from upl_ray.storage.store import Store
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.images import EXTENSIONS

CHUNK = 32


def random_weights(architecture: str, root: Path) -> ClipSpec:
    """A backbone with random weights, as a folder that every worker can load."""
    torch.manual_seed(0)
    folder = root / architecture
    folder.mkdir()
    model = open_clip.create_model(architecture, load_weights=False)
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": {"size": 224}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    return resolve_backbone(Backbone(model=f"local-dir:{folder}", name=architecture))


def pick(folder: Path, images: int, target: Path) -> Path:
    """Every n-th photograph of a folder, linked or copied into another."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
    step = max(1, len(files) // images)
    target.mkdir()
    for i, path in enumerate(files[::step][:images]):
        shutil.copy(path, target / f"{i:05d}{path.suffix.lower()}")
    return target


def plain_loop(corpus: Corpus, clips: list[ClipModel]) -> None:
    """Read, decode and encode chunk by chunk in this process."""
    geometries = list({c.spec.geometry.key: c.spec.geometry for c in clips}.values())
    for shard in corpus.shards:
        for chunk in decode_chunks(shard.root, corpus.listing(shard), geometries, CHUNK):
            for clip in clips:
                clip.encode_crops(chunk[clip.spec.geometry.key])


def forward_only(crops: dict[str, Any], clip: ClipModel, images: int) -> None:
    """Encode decoded crops again and again until as many images as the corpus has are done."""
    for _ in range(0, images, CHUNK):
        clip.encode_crops(crops[clip.spec.geometry.key])


def ray_data(photos: Path, specs: list[ClipSpec], passes: int, root: Path) -> float:
    """Seconds of the embedding step into a fresh storage, in one pass or one pass a backbone."""
    store = Store(tempfile.mkdtemp(dir=root))
    corpus = list_corpus(store, Source(uri=str(photos)), 4096)
    compute = Compute(chunk_size=CHUNK)
    groups = [specs] if passes == 1 else [[s] for s in specs]
    every = {s.id for s in corpus.shards}
    steps = {s.name: feature_step(corpus.step.store, s) for g in groups for s in g}
    return sum(
        seconds_of(partial(make_features, [corpus], g, steps, compute, {s.name: every for s in g})) for g in groups
    )


def measure(name: str, specs: list[ClipSpec], photos: Path, few: Path, root: Path, repeats: int) -> dict[str, Any]:
    """One row: rates of the plain loop and of the step, and what several backbones cost beside their forward times."""
    corpus = list_corpus(Store(tempfile.mkdtemp(dir=root)), Source(uri=str(photos)), 4096)
    clips = [ClipModel(s, device="cpu") for s in specs]
    geometries = list({s.geometry.key: s.geometry for s in specs}.values())
    crops = next(decode_chunks(corpus.shards[0].root, corpus.listing(corpus.shards[0]), geometries, CHUNK))
    times: dict[str, list[float]] = {
        k: [] for k in ("plain", "one pass", "passes", "forward", "start one", "start all")
    }
    for _ in range(repeats):
        times["plain"].append(seconds_of(partial(plain_loop, corpus, clips)))
        times["forward"].append(sum(seconds_of(partial(forward_only, crops, c, corpus.images)) for c in clips))
        times["start one"].append(ray_data(few, specs, 1, root))
        times["one pass"].append(ray_data(photos, specs, 1, root))
        if len(specs) > 1:
            times["start all"].append(ray_data(few, specs, len(specs), root))
            times["passes"].append(ray_data(photos, specs, len(specs), root))
    mid = {k: median(t) for k, t in times.items() if t}
    work = mid["one pass"] - mid["start one"]
    row = {
        "backbones": name,
        "images": corpus.images,
        "plain [images/s]": corpus.images / mid["plain"],
        "step [images/s]": corpus.images / work,
        "of plain": mid["plain"] / work,
        "start-up [s]": mid["start one"],
        "whole step [s]": mid["one pass"],
        "of forward time": work / mid["forward"],
    }
    row["passes / one pass"] = (mid["passes"] - mid["start all"]) / work if len(specs) > 1 else None
    return row


def main() -> None:
    """Print a row for RN50, one for three backbones of its size and one for the demo's three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="photographs, nested")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--demo-images", type=int, default=4096)
    parser.add_argument("--only", choices=["one", "three", "demo"], help="one row instead of all")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        few = pick(args.folder, 1, root / "few")
        real = [random_weights(name, root) for name in ("RN50", "RN101", "ViT-B-32")]
        demo = [resolve_backbone(Backbone(model=f"demo:{name}")) for name in ("rn", "vit_a", "vit_b")]
        sides = {
            "one": (real[:1], args.images),
            "three": (real, args.images),
            "demo": (demo, args.demo_images),
        }
        rows = []
        for side, (specs, images) in sides.items():
            if args.only in (None, side):
                photos = pick(args.folder, images, root / side)
                rows.append(measure(" ".join(s.name for s in specs), specs, photos, few, root, args.repeats))
    report("embed", rows, hardware=hardware("cpu"), torch=torch.__version__, ray=ray.__version__)


if __name__ == "__main__":
    main()
