"""Train the demo's three backbones on rendered type: ``python -m upl_ray.demo.pretraining.pretrain [--out DIR]``."""

import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
import tyro
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save

from upl_ray.demo.pretraining.architectures import ARCHITECTURES, BPE_FILE, CONTEXT_LENGTH, Architecture
from upl_ray.demo.pretraining.bpe import learn_merges, write_bpe
from upl_ray.demo.pretraining.captions import vocabulary
from upl_ray.demo.pretraining.contrastive import render_world, train

PICTURES = 20_000
WORLD_SEED = 0


def main(out: Path = Path(__file__).parents[1] / "backbones", only: str = "", jobs: int = 2) -> None:
    """Train every backbone, or only the named one, ``jobs`` at a time, and write their folders below ``out``."""
    chosen = [architecture for architecture in ARCHITECTURES if only in ("", architecture.name)]
    if not chosen:
        raise ValueError(f"There is no backbone {only!r}; there are {[a.name for a in ARCHITECTURES]}.")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        for name in pool.map(partial(make_backbone, out), chosen):
            print(f"{name} is in {out / name}", flush=True)


def make_backbone(out: Path, architecture: Architecture) -> str:
    """Render the world, train one backbone on it and write its folder; return its name."""
    torch.set_num_threads(1)  # sums do not depend on the number of cores
    merges = learn_merges(vocabulary())
    with tempfile.TemporaryDirectory() as folder:
        write_bpe(Path(folder) / BPE_FILE, merges)
        tokenizer = SimpleTokenizer(str(Path(folder) / BPE_FILE), context_length=CONTEXT_LENGTH)
    print(f"{architecture.name}: rendering {PICTURES} pictures", flush=True)
    model = train(architecture, render_world(WORLD_SEED, PICTURES), tokenizer)
    write_backbone(out / architecture.name, architecture, model, merges)
    return architecture.name


def write_backbone(folder: Path, architecture: Architecture, model: CLIP, merges: list[tuple[str, str]]) -> None:
    """Write the folder that ``open_clip.create_model("local-dir:...")`` loads; weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": architecture.model_cfg(model.vocab_size),
        "preprocess_cfg": architecture.preprocess_cfg(),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_bpe(folder / BPE_FILE, merges)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    halved = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    (folder / "open_clip_model.safetensors").write_bytes(save(halved))


if __name__ == "__main__":
    tyro.cli(main)
