"""Text features of learned prompts through the frozen text tower, for every tower that open_clip can load.

A prompt is `[SOS] ctx_1 ... ctx_M [class name] . [EOS]`; the class name may also stand in the middle of the context or
in front of it, and the context may be the class's own (CoOp, section 3.1).

Shapes: G members, C classes, c classes of a chunk, M context tokens, L prompt length, W text width, D feature width.

Three passes give the same result, chosen by what the tower and the prompt allow:
* packed: open_clip's causal towers, class name at the end, a context shared by the classes; see `packed_text.py`;
* truncated: causal towers otherwise; what follows EOS cannot influence it, so prompts are cut to the longest;
* own: every other tower (bidirectional, Hugging Face, CoCa) runs its own `encode_text`, with the context put in place
  of the embeddings of placeholder tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from upl_ray.clip_model import ClipModel
from upl_ray.config import ClassPosition, ConfigError
from upl_ray.packed_text import PackedTextEncoder, can_pack


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of all prompts with placeholders where the context goes."""

    ids: Tensor  # [C, context_length] int64
    positions: Tensor  # [C, M] int64: where the context stands in each prompt


def prompt_tokens(
    tokenizer: Any,
    classnames: tuple[str, ...],
    n_ctx: int,
    class_position: ClassPosition = "end",
    remedy: str = "lower train.n_ctx",
) -> PromptTokens:
    """Tokenise "<classname>." and open gaps of M placeholders for the context, for any tokenizer.

    Args:
        tokenizer: as open_clip gives it: texts -> token ids [n, context_length].
        classnames: C names.
        n_ctx: M.
        class_position: where the name stands.
        remedy: what to do about a name that does not fit, beside shortening it; whoever asked for M knows.

    Raises:
        ConfigError: a class name is too long to fit beside M context tokens.
    """
    probes = tokenizer(["a", "b"])
    start = int(bool(probes[0, 0] == probes[1, 0]))  # texts that differ still begin alike: a start token
    pad, placeholder = probes[0, -1], int(probes[0, start])
    ids = tokenizer([f"{name}." for name in classnames]).long()  # [C, context_length]
    length = ids.shape[1]
    fits = n_ctx < length - 2
    overflow = (ids[:, length - n_ctx :] != pad).any(dim=1) if fits else torch.ones(len(ids), dtype=torch.bool)
    if overflow.any():
        name = classnames[int(overflow.int().argmax())]
        raise ConfigError(
            f"The class name {name!r} does not fit behind {n_ctx} context tokens: the model reads {length} tokens; "
            f"shorten the name or {remedy}."
        )
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[class_position]  # context tokens before the name
    # The name's tokens are those that "<classname>" and "<classname>." have in common.
    same = ids[:, start:] == tokenizer(list(classnames)).long()[:, start:]
    name_lengths = same.int().cumprod(dim=1).sum(dim=1).tolist()
    rows, positions = [], []
    for row, name_length in zip(ids.tolist(), name_lengths, strict=True):
        name_end = start + name_length
        first, second = [placeholder] * before, [placeholder] * (n_ctx - before)
        rows.append((row[:start] + first + row[start:name_end] + second + row[name_end:])[:length])
        behind = name_end + before
        positions.append([*range(start, start + before), *range(behind, behind + n_ctx - before)])
    return PromptTokens(torch.tensor(rows), torch.tensor(positions))


class TextEncoder(nn.Module):
    """Frozen text tower that maps context vectors to class features.

    Args:
        clip: the target model.
        classnames: C names.
        n_ctx: M.
        class_position: where the class name stands.
        class_specific: True if every class has a context of its own, [G, C, M, W] instead of [G, M, W].

    Raises:
        ConfigError: see `prompt_tokens`.
    """

    def __init__(
        self,
        clip: ClipModel,
        classnames: tuple[str, ...],
        n_ctx: int,
        class_position: ClassPosition = "end",
        class_specific: bool = False,
    ) -> None:
        super().__init__()
        self.model = clip.model
        self.tower: Any = clip.model.text if hasattr(clip.model, "text") else clip.model
        tokens = prompt_tokens(clip.tokenizer, classnames, n_ctx, class_position)
        self.ids, self.positions = tokens.ids.to(clip.device), tokens.positions.to(clip.device)
        self.embedding = find_token_embedding(self.tower)
        self.width = self.embedding.embedding_dim
        self.ctx_shape = (len(classnames), n_ctx, self.width) if class_specific else (n_ctx, self.width)
        self.mode = choose_pass(self.tower, shared_prefix=class_position == "end" and not class_specific)
        if self.mode != "own":
            self.eos = _eos_positions(self.tower, self.ids)  # [C]
        self.split(1)

    def split(self, n_chunks: int) -> None:
        """Encode the classes in so many chunks, each recomputed for its backward pass: exact, in less memory."""
        c = len(self.ids)
        size = -(-c // n_chunks)
        self.chunks = [slice(first, min(first + size, c)) for first in range(0, c, size)]
        if self.mode == "packed":
            stop = int(self.positions[0, -1]) + 1
            self.packed = [PackedTextEncoder(self.tower, self.ids[s], self.eos[s], stop) for s in self.chunks]

    def forward(self, ctx: Tensor) -> Tensor:
        """L2-normalised class features [G, C, D] of contexts [G, M, W] or [G, C, M, W]."""
        if len(self.chunks) == 1:
            return self.encode(ctx, 0)
        chunks = range(len(self.chunks))
        return torch.cat([checkpoint(self.encode, ctx, i, use_reentrant=False) for i in chunks], dim=1)

    def encode(self, ctx: Tensor, chunk: int) -> Tensor:
        """Features of one chunk of classes [G, c, D]."""
        if self.mode == "packed":
            features = _project(self.tower, self.packed[chunk](ctx))
        else:
            one = self._truncated if self.mode == "truncated" else self._own
            features = one(ctx, self.chunks[chunk])
        return nn.functional.normalize(features.float(), dim=-1)

    def activation_bytes(self) -> int:
        """Upper estimate of what one member's pass over all classes keeps for its backward pass [bytes, float32]."""
        c = len(self.ids)
        layers, heads = _depth(self.tower), max(1, self.width // 64)
        if self.mode == "packed":
            tokens = sum(p.tokens for p in self.packed)
            keys = max(p.stop + p.block_size for p in self.packed)
            joined = 2 * self.width * keys / min(p.block_size for p in self.packed)  # keys and values behind the prefix
        else:
            length = self.ids.shape[1] if self.mode == "own" else int(self.eos.max()) + 1
            tokens, keys, joined = c * length, length, 0.0
        # A token keeps two layer norms' inputs, q, k, v, the attended values and twice the MLP's hidden layer of 4 W.
        return int(4 * layers * tokens * (15 * self.width + joined + 2 * heads * keys))

    def _context(self, ctx: Tensor, classes: slice) -> Tensor:
        """The contexts of some classes [G, c, M, W]."""
        n = classes.stop - classes.start
        return ctx[:, classes] if ctx.dim() == 4 else ctx.unsqueeze(1).expand(-1, n, -1, -1)

    def _put(self, embedded: Tensor, ctx: Tensor, classes: slice) -> Tensor:
        """Embeddings [..., c, L, W] with the contexts [..., c, M, W] at their positions."""
        index = self.positions[classes].unsqueeze(-1).expand(ctx.shape)
        return embedded.scatter(-2, index, ctx.to(embedded.dtype))

    def _truncated(self, ctx: Tensor, classes: slice) -> Tensor:
        tower, eos = self.tower, self.eos[classes]
        g, c, length = ctx.shape[0], len(eos), int(eos.max()) + 1
        embedded = self.embedding(self.ids[classes, :length]).expand(g, -1, -1, -1)  # [G, c, L, W]
        x = self._put(embedded, self._context(ctx, classes), classes)
        x = (x + tower.positional_embedding[:length]).flatten(0, 1)  # [G * c, L, W]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = x[torch.arange(g * c, device=x.device), eos.repeat(g)]  # [G * c, W]
        return _project(tower, tower.ln_final(x)).reshape(g, c, -1)

    def _own(self, ctx: Tensor, classes: slice) -> Tensor:
        """The model's own forward pass, one member after the other, with a hook on its token embedding."""
        features = []
        for member in self._context(ctx, classes):  # [c, M, W]

            def put_context(_: nn.Module, __: Any, out: Tensor, member: Tensor = member) -> Tensor:
                return self._put(out, member, classes)

            handle = self.embedding.register_forward_hook(put_context)
            try:
                features.append(self.model.encode_text(self.ids[classes]))
            finally:
                handle.remove()
        return torch.stack(features)  # [G, c, D]


def _depth(tower: nn.Module) -> int:
    """Number of transformer layers."""
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList)]
    return max((len(m) for m in lists), default=12)


def choose_pass(tower: Any, shared_prefix: bool = True) -> Literal["packed", "truncated", "own"]:
    """The fastest pass that is exact for a text tower, and for prompts that begin alike for all classes or do not."""
    if not is_causal(tower):
        return "own"
    return "packed" if shared_prefix and can_pack(tower) else "truncated"


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
