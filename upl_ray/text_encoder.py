"""Text features of learned prompts: `[SOS] ctx_1 ... ctx_M [class name] . [EOS]` through the frozen text tower.

Shapes: G members, C classes, M context tokens, L prompt length, W text width, D feature width.

Three passes give the same result, chosen by what the tower allows:
* packed: open_clip's causal towers, see `packed_text.py`;
* truncated: causal towers with other blocks; what follows EOS cannot influence it, so prompts are cut to the longest;
* own: every other tower (bidirectional, Hugging Face, CoCa) runs its own `encode_text`, with the context put in place
  of the embeddings of placeholder tokens.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from upl_ray.clip_model import ClipModel
from upl_ray.config import ConfigError
from upl_ray.packed_text import PackedTextEncoder, can_pack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of all prompts with placeholders where the context goes."""

    ids: Tensor  # [C, context_length] int64
    start: int  # first context position: 1 after a start token, else 0
    n_ctx: int  # M

    @property
    def stop(self) -> int:
        """First position behind the context."""
        return self.start + self.n_ctx


def prompt_tokens(tokenizer: Any, classnames: tuple[str, ...], n_ctx: int) -> PromptTokens:
    """Tokenise "<classname>." and open a gap of M placeholders for the context, for any tokenizer.

    Raises:
        ConfigError: a class name is too long to fit behind M context tokens.
    """
    probes = tokenizer(["a", "b"])
    start = int(bool(probes[0, 0] == probes[1, 0]))  # texts that differ still begin alike: a start token
    pad, placeholder = probes[0, -1], probes[0, start]
    ids = tokenizer([f"{name}." for name in classnames]).long()  # [C, context_length]
    length = ids.shape[1]
    fits = n_ctx < length - 2
    overflow = (ids[:, length - n_ctx :] != pad).any(dim=1) if fits else torch.ones(len(ids), dtype=torch.bool)
    if overflow.any():
        name = classnames[int(overflow.int().argmax())]
        raise ConfigError(
            f"The class name {name!r} does not fit behind {n_ctx} context tokens: the model reads {length} tokens; "
            f"shorten the name or lower train.n_ctx."
        )
    gap = placeholder.long().expand(len(ids), n_ctx)
    return PromptTokens(torch.cat([ids[:, :start], gap, ids[:, start : length - n_ctx]], dim=1), start, n_ctx)


class TextEncoder(nn.Module):
    """Frozen text tower that maps context vectors to class features.

    Raises:
        ConfigError: see `prompt_tokens`.
    """

    def __init__(self, clip: ClipModel, classnames: tuple[str, ...], n_ctx: int) -> None:
        super().__init__()
        self.model = clip.model
        self.tower: Any = clip.model.text if hasattr(clip.model, "text") else clip.model
        self.tokens = prompt_tokens(clip.tokenizer, classnames, n_ctx)
        self.ids = self.tokens.ids.to(clip.device)
        self.embedding = find_token_embedding(self.tower)
        self.width = self.embedding.embedding_dim
        self.mode = choose_pass(self.tower)
        log.info("%s: prompts run through the %s pass of the text tower", clip.spec.name, self.mode)
        if self.mode != "own":
            self.eos = _eos_positions(self.tower, self.tokens.ids).to(clip.device)  # [C]
            self.length = int(self.eos.max()) + 1
        if self.mode == "packed":
            self.packed = PackedTextEncoder(self.tower, self.ids, self.eos, self.tokens.stop)

    def forward(self, ctx: Tensor) -> Tensor:
        """L2-normalised class features [G, C, D] of contexts [G, M, W]."""
        if self.mode == "packed":
            features = _project(self.tower, self.packed(ctx))
        else:
            features = self._truncated(ctx) if self.mode == "truncated" else self._plain(ctx)
        return nn.functional.normalize(features.float(), dim=-1)

    def _truncated(self, ctx: Tensor) -> Tensor:
        g, c, length = ctx.shape[0], len(self.ids), self.length
        tower, tokens = self.tower, self.tokens
        embedded = self.embedding(self.ids[:, :length])  # [C, L, W]
        prefix = embedded[:, : tokens.start].expand(g, -1, -1, -1)
        suffix = embedded[:, tokens.stop :].expand(g, -1, -1, -1)
        x = torch.cat([prefix, ctx.unsqueeze(1).expand(-1, c, -1, -1).to(embedded.dtype), suffix], dim=2)
        x = (x + tower.positional_embedding[:length]).flatten(0, 1)  # [G * C, L, W]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = x[torch.arange(g * c, device=x.device), self.eos.repeat(g)]  # [G * C, W]
        return _project(tower, tower.ln_final(x)).reshape(g, c, -1)

    def _plain(self, ctx: Tensor) -> Tensor:
        """The model's own forward pass, one member after the other, with a hook on its token embedding."""
        features = []
        for member in ctx:

            def put_context(_: nn.Module, __: Any, out: Tensor, member: Tensor = member) -> Tensor:
                middle = member.to(out.dtype).expand(len(out), -1, -1)
                return torch.cat([out[:, : self.tokens.start], middle, out[:, self.tokens.stop :]], dim=1)

            handle = self.embedding.register_forward_hook(put_context)
            try:
                features.append(self.model.encode_text(self.ids))
            finally:
                handle.remove()
        return torch.stack(features)  # [G, C, D]


def choose_pass(tower: Any) -> Literal["packed", "truncated", "own"]:
    """The fastest pass that is exact for a text tower."""
    if not is_causal(tower):
        return "own"
    return "packed" if can_pack(tower) else "truncated"


def is_causal(tower: Any) -> bool:
    """True for open_clip towers in which the feature at EOS depends on earlier tokens only and is read at EOS."""
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    mask = getattr(tower, "attn_mask", None)
    if pool not in ("argmax", "eos") or mask is None or getattr(tower, "cls_emb", None) is not None:
        return False
    return bool(torch.isinf(mask[0, 1:]).all())


def find_token_embedding(tower: Any) -> nn.Embedding:
    """The table of token embeddings, in open_clip's own and in Hugging Face towers."""
    if hasattr(tower, "token_embedding"):
        embedding: nn.Embedding = tower.token_embedding
    else:
        embedding = tower.transformer.get_input_embeddings()
    return embedding


def _eos_positions(tower: Any, ids: Tensor) -> Tensor:
    """Where the tower reads the feature of each prompt [C], by open_clip's `text_global_pool`."""
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    if pool == "argmax":
        return ids.argmax(dim=-1)
    eos_id = getattr(tower, "eos_id", getattr(tower, "text_eos_id", None))
    return torch.eq(ids, torch.tensor(eos_id)).int().argmax(dim=-1)


def _project(tower: Any, x: Tensor) -> Tensor:
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        return nn.functional.linear(x, projection.weight, projection.bias)
    return x if projection is None else x @ projection
