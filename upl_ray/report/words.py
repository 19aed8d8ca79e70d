"""The vocabulary words that lie nearest to learned context vectors, as an artifact beside the classifier.

CoOp (Zhou et al. 2021, section 4.4) looked at them too, by Euclidean distance, and found few that mean anything. Needs
the weights file, of which it reads the token embeddings alone; reports read the result and need no model.

Shapes: S members, M context tokens, W text width, V vocabulary.
"""

from __future__ import annotations

import torch
from open_clip.factory import load_state_dict
from safetensors import safe_open
from torch import Tensor

from upl_ray.artifacts import Artifact
from upl_ray.backbones import find_weights, load_tokenizer
from upl_ray.clip_spec import ClipSpec
from upl_ray.ensemble import load_ensemble
from upl_ray.report.finished import word_artifact

# Names of the table of token embeddings in open_clip's own towers and in those of Hugging Face.
EMBEDDINGS = ("token_embedding.weight", "word_embeddings.weight", "embed_tokens.weight", "wte.weight")
SAMPLE = 512  # words whose distance to their own nearest word says how far apart words are


def store_words(classifier: Artifact, spec: ClipSpec) -> None:
    """Find and store the nearest word of each context vector, unless it was done.

    A context of each class' own has C times as many vectors, which nobody reads: nothing is stored for it. Nor is
    anything where the weights hold no table of token embeddings of the context's width.
    """
    artifact = word_artifact(classifier)
    if artifact.manifest() is not None:
        return
    ctx = load_ensemble(classifier.uri).ctx
    table = token_embeddings(spec) if ctx.ndim == 3 else None
    if table is None or table.shape[1] != ctx.shape[-1]:
        artifact.finish(words=None)
        return
    tokens, distances = nearest(ctx, table)
    decode = Decoder(spec.source)
    artifact.finish(
        words=[[decode(t) for t in member] for member in tokens.tolist()],
        distances=[[round(d, 4) for d in member] for member in distances.tolist()],
        between_words=between_words(table),
    )


def token_embeddings(spec: ClipSpec) -> Tensor | None:
    """The token embeddings [V, W] float32 of a backbone's weights file; None if it holds none by a known name."""
    _, weights, _, _ = find_weights(spec.backbone)
    if weights.suffix == ".safetensors":
        with safe_open(weights, framework="pt") as file:
            name = next((n for n in file.keys() if n.endswith(EMBEDDINGS)), None)  # noqa: SIM118
            return None if name is None else file.get_tensor(name).float()
    state = load_state_dict(str(weights), weights_only=True)
    return next((t.float() for n, t in state.items() if n.endswith(EMBEDDINGS)), None)


def nearest(ctx: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest row of `table` [V, W] and the Euclidean distance to it [S, M], for each vector of `ctx` [S, M, W]."""
    distances, tokens = torch.cdist(ctx.float().flatten(0, 1), table).min(dim=1)
    return tokens.unflatten(0, ctx.shape[:2]), distances.unflatten(0, ctx.shape[:2])


def between_words(table: Tensor) -> float:
    """Median distance of a word to the nearest other word, over some of them: the scale that distances are read on."""
    rows = torch.linspace(0, len(table) - 1, min(SAMPLE, len(table))).long()
    distances = torch.cdist(table[rows], table)
    distances[torch.arange(len(rows)), rows] = torch.inf
    return float(distances.min(dim=1).values.median())


class Decoder:
    """Token ids as text, with open_clip's own tokenizers and those of Hugging Face."""

    def __init__(self, source: str) -> None:
        tokenizer = load_tokenizer(source)
        self.tokenizer = tokenizer if hasattr(tokenizer, "decode") else tokenizer.tokenizer

    def __call__(self, token: int) -> str:
        """One token, without the marks of word ends; its number where it is no text, such as a part of a letter."""
        word = str(self.tokenizer.decode([token])).strip()
        return word if word.isprintable() and word and "\ufffd" not in word else f"#{token}"
