"""What moving pixels between processes costs: the feature step with models that do next to nothing, on an idle machine.

python -m benchmarks.chain --folder photos/ --images 6144

CPU time is that of the whole machine (/proc/stat), between two numbers of images, so that start-up is left out. Of it,
one process for each core, all at once, decodes the same photographs to crops of 224 pixels, and passes crops through
the model, whose own normalisation is most of its work; what is left is what moving costs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import open_clip
import ray
import safetensors.torch
import torch

from benchmarks.embed import pick
from benchmarks.measure import hardware, report
from upl_ray.config.settings import Backbone, Compute, Source
from upl_ray.corpus.shards import list_corpus
from upl_ray.pipeline.features import decode_chunks, feature_step, make_features
from upl_ray.storage.store import Store
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec

BASE = 1024  # images of the smaller run
REST_S = 5.0  # until the actors of a run have ended


def small_model(index: int, root: Path) -> ClipSpec:
    """A backbone of 224 pixels, four patches and one layer."""
    torch.manual_seed(index)
    folder = root / f"small{index}"
    if not folder.exists():
        folder.mkdir()
        vision = {"image_size": 224, "layers": 1, "width": 64, "patch_size": 112, "head_width": 32}
        text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
        config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
        (folder / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": config, "preprocess_cfg": {"size": 224}}), encoding="utf-8"
        )
        weights = {k: v.contiguous() for k, v in open_clip.CLIP(**config).state_dict().items()}
        safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    return resolve_backbone(Backbone(model=f"local-dir:{folder}", name=f"small{index}"))


def machine_cpu_s() -> float:
    """CPU seconds of all processes since the machine started."""
    user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text(encoding="utf-8").split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def stages_here(photos: Path, root: Path) -> dict[str, float]:
    """CPU milliseconds an image of decoding and of encoding, in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as storage:
        corpus = list_corpus(Store(storage), Source(uri=str(photos)), 4096)
        spec = small_model(0, root)
        start = time.process_time()
        for shard in corpus.shards:
            for chunk in decode_chunks(shard.root, corpus.listing(shard), [spec.geometry], 64):
                crops = chunk[spec.geometry.key]
        decode = (time.process_time() - start) / corpus.images
    clip = ClipModel(spec, device="cpu")
    clip.encode_crops(crops)
    start = time.process_time()
    for _ in range(20):
        clip.encode_crops(crops)
    return {"decode_ms": 1e3 * decode, "encode_ms": 1e3 * (time.process_time() - start) / 20 / len(crops)}


def stages(photos: Path, root: Path) -> dict[str, float]:
    """The same with all cores busy, as they are in the step: the mean of one process for each core."""
    command = [sys.executable, "-m", "benchmarks.chain", "--folder", str(photos), "--stages", str(root)]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(os.cpu_count() or 1)]
    found = [json.loads(job.communicate()[0].splitlines()[-1]) for job in jobs]
    return {name: sum(f[name] for f in found) / len(found) for name in found[0]}


def step_cpu_s(photos: Path, specs: list[ClipSpec], root: Path) -> float:
    """CPU seconds of the feature step into a fresh storage."""
    store = Store(tempfile.mkdtemp(dir=root))
    corpus = list_corpus(store, Source(uri=str(photos)), 4096)
    needed = {s.name: {x.id for x in corpus.shards} for s in specs}
    before = machine_cpu_s()
    make_features([corpus], specs, {s.name: feature_step(store, s) for s in specs}, Compute(chunk_size=64), needed)
    time.sleep(REST_S)
    return machine_cpu_s() - before


def main() -> None:
    """A row for one backbone, and one for three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="photographs, nested")
    parser.add_argument("--images", type=int, default=6144)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stages", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stages:
        print(json.dumps(stages_here(args.folder, args.stages)))
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        many = pick(args.folder, args.images, root / "many")
        few = pick(many, BASE, root / "few")
        specs = [small_model(i, root) for i in range(3)]
        alone = [stages(few, root) for _ in range(args.repeats)]
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        step_cpu_s(few, specs[:1], root)  # warm-up
        rows = []
        for n in (1, 3):
            rounds = [step_cpu_s(many, specs[:n], root) - step_cpu_s(few, specs[:n], root) for _ in range(args.repeats)]
            whole = 1e3 * median(rounds) / (args.images - BASE)
            decode, encode = (median(a[name] for a in alone) for name in ("decode_ms", "encode_ms"))
            row = {"backbones": n, "decode_ms": decode, "encode_ms": n * encode, "whole_ms": whole}
            rows.append({**row, "moving_ms": whole - decode - n * encode})
        rows[1]["each_further_ms"] = (rows[1]["moving_ms"] - rows[0]["moving_ms"]) / 2
        rows[0]["each_further_ms"] = float("nan")
    report("chain", rows, images=args.images, hardware=hardware("cpu"), torch=torch.__version__, ray=ray.__version__)


if __name__ == "__main__":
    main()
