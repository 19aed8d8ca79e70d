"""The three tiny backbones: architecture, seed, and the open_clip configuration written beside the weights."""

from dataclasses import dataclass
from typing import Any

EMBED_DIM = 128
CONTEXT_LENGTH = 32  # holds SOS, 16 context tokens, a class name, "." and EOS
BPE_FILE = "bpe.txt.gz"


@dataclass(frozen=True)
class Architecture:
    """One backbone of the demo: its folder name, its image tower, and how it is trained."""

    name: str
    vision: dict[str, Any]
    text: dict[str, Any]
    seed: int
    steps: int

    @property
    def image_size(self) -> int:
        """Side of the input picture in pixels."""
        return int(self.vision["image_size"])

    def model_cfg(self, vocab_size: int) -> dict[str, Any]:
        """Return open_clip's ``model_cfg``; the path of the BPE file is relative to the backbone's folder."""
        text = {"context_length": CONTEXT_LENGTH, "vocab_size": vocab_size, **self.text}
        text["tokenizer_kwargs"] = {"bpe_path": BPE_FILE}
        return {"embed_dim": EMBED_DIM, "vision_cfg": self.vision, "text_cfg": text}

    def preprocess_cfg(self) -> dict[str, Any]:
        """Return open_clip's ``preprocess_cfg``."""
        return {
            "size": self.image_size,
            "mode": "RGB",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        }


TEXT = {"width": 64, "heads": 2, "layers": 3}
RN = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 12, "head_width": 48}
VIT_A = {"image_size": 32, "patch_size": 8, "width": 96, "layers": 3, "head_width": 32, "pool_type": "avg"}
VIT_B = {"image_size": 24, "patch_size": 4, "width": 64, "layers": 3, "head_width": 32, "pool_type": "avg"}
ARCHITECTURES = (
    Architecture("rn", RN, TEXT, seed=1, steps=1200),
    Architecture("vit_a", VIT_A, TEXT, seed=2, steps=1200),
    Architecture("vit_b", VIT_B, TEXT, seed=3, steps=1200),
)
