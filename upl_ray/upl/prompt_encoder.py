"""Text features of learned prompts through the frozen text tower, for every tower that open_clip can load.

A prompt is `[SOS] ctx_1 ... ctx_M [class name] . [EOS]`, with one context for all classes (CoOp, section 3.1: unified
context, class token at the end).

Shapes: G members, C classes, c classes of a chunk, M context tokens, L prompt length, W text width, D feature width.

Three passes give the same result; the tower decides which is used:
* packed: open_clip's plain causal towers; the context is computed once for all classes, see `packed_text.py`;
* truncated: other causal towers; what follows EOS cannot influence it, so prompts are cut to the longest;
* own: every other tower (bidirectional, Hugging Face, CoCa) runs its own `encode_text`, with the context in place of
  the embeddings of placeholder tokens.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from upl_ray.errors import ConfigError
from upl_ray.upl.backbones import find_equal, tokenize
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.packed_text import PackedTextEncoder, can_pack


def prompt_tokens(
    tokenizer: Any, classnames: tuple[str, ...], n_ctx: int, remedy: str = "lower train.n_ctx"
) -> tuple[Tensor, int]:
    """Token ids of the prompts "<context> <classname>.", for any tokenizer.

    Args:
        tokenizer: as open_clip gives it: texts, context length -> token ids [n, L].
        classnames: C names.
        n_ctx: M.
        remedy: what the error advises beside a shorter name, for a caller whose M is not `train.n_ctx`.

    Returns:
        The ids [C, L] int64 with placeholders for the context, and the position of the first placeholder: 1 behind a
        start token, else 0.

    Raises:
        ConfigError: a class name is too long to fit beside M context tokens, or two have the same tokens.
    """
    probes = tokenizer(["a", "b"])
    length = probes.shape[1]
    start = int(bool(probes[0, 0] == probes[1, 0]))  # texts that differ still begin alike: a start token
    if n_ctx < length - 2:
        ids, cut = tokenize(tokenizer, [f"{name}." for name in classnames], free=n_ctx)  # [C, L - M]
    else:
        cut = torch.ones(len(classnames), dtype=torch.bool)
    if cut.any():
        name = classnames[int(cut.int().argmax())]
        raise ConfigError(
            f"The class name {name!r} does not fit behind {n_ctx} context tokens: the model reads {length} tokens; "
            f"shorten the name or {remedy}."
        )
    if equal := find_equal(classnames, ids):
        raise ConfigError(
            f"The class names {equal[0]!r} and {equal[1]!r} are the same tokens to the model; rename one of them."
        )
    placeholders = torch.full((len(ids), n_ctx), int(probes[0, start]))  # [C, M]
    return torch.cat([ids[:, :start], placeholders, ids[:, start:]], dim=1), start


class PromptEncoder(nn.Module):
    """Frozen text tower that maps context vectors to class features.

    Args:
        clip: the target model.
        classnames: C names.
        n_ctx: M.

    Raises:
        ConfigError: see `prompt_tokens`.
    """

    def __init__(self, clip: ClipModel, classnames: tuple[str, ...], n_ctx: int) -> None:
        super().__init__()
        self.model = clip.model
        self.tower = find_tower(clip.model)
        ids, self.ctx_start = prompt_tokens(clip.tokenizer, classnames, n_ctx)
        self.ids, self.ctx_stop = ids.to(clip.device), self.ctx_start + n_ctx
        self.width = find_token_embedding(self.tower).embedding_dim
        self.ctx_shape = (n_ctx, self.width)
        self.mode = choose_pass(self.tower)
        if self.mode != "own":
            self.eos = _eos_positions(self.tower, self.ids)  # [C]
        self.split(1)

    def split(self, n_chunks: int) -> None:
        """Encode the classes in `n_chunks` chunks, each recomputed for its backward pass: exact, in less memory."""
        c = len(self.ids)
        size = -(-c // n_chunks)
        self.chunks = [slice(first, min(first + size, c)) for first in range(0, c, size)]
        if self.mode == "packed":
            self.packed = [PackedTextEncoder(self.tower, self.ids[s], self.eos[s], self.ctx_stop) for s in self.chunks]

    @cached_property
    def bf16_model(self) -> Any:
        """The model for passes in bf16; its linear layers exist a second time, in half of their memory."""
        return cast_linear_weights(self.model)

    def forward(self, ctx: Tensor, precision: Literal["fp32", "bf16"] = "fp32") -> Tensor:
        """L2-normalised class features of contexts, [G, M, W] -> [G, C, D].

        In bf16, matrix products are rounded to it; everything else, and the result, stays in float32 (torch.autocast).
        """
        bf16 = precision == "bf16"
        model, chunks = self.bf16_model if bf16 else self.model, range(len(self.chunks))
        with torch.autocast(ctx.device.type, torch.bfloat16, enabled=bf16):
            if len(chunks) == 1:
                return self.encode(ctx, 0, model)
            return torch.cat([checkpoint(self.encode, ctx, i, model, use_reentrant=False) for i in chunks], dim=1)

    def encode(self, ctx: Tensor, chunk: int, model: Any) -> Tensor:
        """Features of one chunk of classes [G, c, D]."""
        tower = find_tower(model)
        if self.mode == "packed":
            features = _project(tower, self.packed[chunk](ctx, tower))
        elif self.mode == "truncated":
            features = self._truncated(ctx, self.chunks[chunk], tower)
        else:
            features = self._own(ctx, self.chunks[chunk], model)
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

    def _insert_ctx(self, embedded: Tensor, ctx: Tensor) -> Tensor:
        """Embeddings [..., L, W] with the context [..., M, W] in place of the placeholders."""
        before, behind = embedded[..., : self.ctx_start, :], embedded[..., self.ctx_stop :, :]
        return torch.cat([before, ctx.to(embedded.dtype), behind], dim=-2)

    def _truncated(self, ctx: Tensor, classes: slice, tower: Any) -> Tensor:
        """Features before normalisation [G, c, D], from prompts that end with the longest one's EOS."""
        eos = self.eos[classes]
        g, c, length = ctx.shape[0], len(eos), int(eos.max()) + 1
        embedded = find_token_embedding(tower)(self.ids[classes, :length]).expand(g, -1, -1, -1)  # [G, c, L, W]
        x = self._insert_ctx(embedded, ctx.unsqueeze(1).expand(-1, c, -1, -1))  # [G, c, L, W]
        x = (x + tower.positional_embedding[:length]).flatten(0, 1)  # [G * c, L, W]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = x[torch.arange(g * c, device=x.device), eos.repeat(g)]  # [G * c, W]
        return _project(tower, tower.ln_final(x)).reshape(g, c, -1)

    def _own(self, ctx: Tensor, classes: slice, model: Any) -> Tensor:
        """The model's own forward pass, one member after the other, with a hook on its token embedding."""
        embedding, features = find_token_embedding(find_tower(model)), []
        for member in ctx:  # [M, W]

            def insert_ctx(_: nn.Module, __: Any, out: Tensor, member: Tensor = member) -> Tensor:
                return self._insert_ctx(out, member.expand(len(out), -1, -1))  # [c, L, W]

            handle = embedding.register_forward_hook(insert_ctx)
            try:
                features.append(model.encode_text(self.ids[classes]))  # [c, D]
            finally:
                handle.remove()
        return torch.stack(features)  # [G, c, D]


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


def find_tower(model: Any) -> Any:
    """The text tower of an open_clip model, which in classic models is the model itself."""
    return model.text if hasattr(model, "text") else model


def cast_linear_weights(model: Any) -> Any:
    """A copy of a frozen model whose text tower has in bfloat16 what torch.autocast would cast to it at every step.

    These are the weights of linear layers, in attention too, and the projection. Everything else is shared.
    """
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for name, module in find_tower(model).named_modules():
        if name.startswith("visual"):
            continue
        linear = isinstance(module, nn.Linear)
        names = ("weight", "bias") if linear else ("in_proj_weight", "in_proj_bias", "text_projection")
        for weight in [w for n in names if (w := module._parameters.get(n)) is not None]:
            shared[id(weight)] = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    cast = copy.deepcopy(model, shared)
    for module in cast.modules():
        if isinstance(module, nn.Linear):
            # open_clip takes the dtype of its embeddings from a linear layer's weight, unless it finds this attribute.
            vars(module)["int8_original_dtype"] = torch.float32
    return cast


def find_token_embedding(tower: Any) -> nn.Embedding:
    """The table of token embeddings, in open_clip's own and in Hugging Face towers."""
    if hasattr(tower, "token_embedding"):
        embedding: nn.Embedding = tower.token_embedding
    else:
        embedding = tower.transformer.get_input_embeddings()
    return embedding


def _depth(tower: nn.Module) -> int:
    """Number of transformer layers."""
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList)]
    return max((len(m) for m in lists), default=12)


def _eos_positions(tower: Any, ids: Tensor) -> Tensor:
    """Where the tower reads the feature of each prompt [C], by open_clip's `text_global_pool`."""
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    if pool == "argmax":
        return ids.argmax(dim=-1)
    eos_id = getattr(tower, "eos_id", getattr(tower, "text_eos_id", None))
    return torch.eq(ids, torch.tensor(eos_id)).int().argmax(dim=-1)


def _project(tower: Any, x: Tensor) -> Tensor:
    """Text features of EOS embeddings behind the final layer norm, [..., W] -> [..., D]."""
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        return nn.functional.linear(x, projection.weight, projection.bias)
    return x if projection is None else x @ projection
