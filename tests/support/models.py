"""Small real open_clip models with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch

from upl_ray.config.settings import Backbone
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}

MakeModel = Callable[..., Path]
MakeClip = Callable[..., ClipModel]


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


def resolve_folder(folder: Path) -> ClipSpec:
    return resolve_backbone(Backbone(model=f"local-dir:{folder}"))
