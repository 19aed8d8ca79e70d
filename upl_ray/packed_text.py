"""Shared-prefix packed text encoding: exact features of all classes at a fraction of the tokens.

A causal text tower computes the positions of `[SOS] ctx_1 ... ctx_M` alike for every class, and nothing behind EOS
matters. So one sequence holds the prefix once and behind it the suffixes `[class name] . [EOS]` of all classes, packed
without padding. Every linear layer sees it as one matrix; a suffix token attends to the prefix and to its own class.

Classes are sorted by suffix length, so that each run of equal lengths is a dense block and attention needs no padding.
The first layer's query, key and value of suffix tokens do not depend on the context: constants. The last layer needs
queries and MLP at EOS only, and of the prefix only keys and values.

Shapes: G members, C classes, P prefix length (1 + M), T suffix tokens of all classes, N = P + T, W width, H heads,
d = W / H, n suffix length of a block, D feature width.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F


def can_pack(tower: Any) -> bool:
    """True if every block of the (causal) tower is open_clip's plain one, whose arithmetic is written out here."""
    return all(type(block) is ResidualAttentionBlock for block in tower.transformer.resblocks)


class PackedTextEncoder(nn.Module):
    """Features of prompts with a shared context, for causal open_clip text towers.

    Args:
        tower: the text tower (`CLIP` itself or `CustomTextCLIP.text`), frozen.
        ids: token ids of the prompts with placeholders for the context [C, L].
        eos: position of EOS in each prompt [C].
        stop: P, the first position behind the context.
    """

    def __init__(self, tower: Any, ids: Tensor, eos: Tensor, stop: int) -> None:
        super().__init__()
        self.blocks = list(tower.transformer.resblocks)
        self.ln_final, self.heads, self.stop = tower.ln_final, self.blocks[0].attn.num_heads, stop
        lengths = eos - stop + 1  # [C]
        order = torch.argsort(lengths, stable=True)
        self.runs = [(int(n), int(c)) for n, c in zip(*torch.unique(lengths, return_counts=True), strict=True)]
        self.inverse = torch.argsort(order)  # features come out in sorted order
        positions = [torch.arange(stop, int(e) + 1, device=ids.device) for e in eos[order]]
        rows = torch.cat([c.expand(len(p)) for c, p in zip(order, positions, strict=True)])
        columns = torch.cat(positions)
        self.ends = torch.cumsum(lengths[order], 0) - 1  # position of each EOS among the T suffix tokens
        with torch.no_grad():
            position = tower.positional_embedding
            self.start = tower.token_embedding(ids[:1, :stop]) + position[:stop]  # [1, P, W], context to be replaced
            self.context_position = position[:stop]
            self.suffix = tower.token_embedding(ids[rows, columns]) + position[columns]  # [T, W]
            self.suffix_qkv = _qkv(self.blocks[0], self.suffix)  # [T, 3W]

    @property
    def tokens(self) -> int:
        """N: tokens that one member's pass runs through the linear layers."""
        return self.stop + len(self.suffix)

    def forward(self, ctx: Tensor) -> Tensor:
        """Features at EOS after the final layer norm, before the projection: [G, M, W] -> [G, C, W]."""
        g, m = ctx.shape[:2]
        sos = self.start[:, : self.stop - m].expand(g, -1, -1)
        prefix = torch.cat([sos, ctx + self.context_position[self.stop - m :]], dim=1)  # [G, P, W]
        x = torch.cat([prefix, self.suffix.expand(g, -1, -1)], dim=1)  # [G, N, W]
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            eos = self.stop + self.ends if i == last else None
            if i == 0:
                qkv = torch.cat([_qkv(block, prefix), self.suffix_qkv.expand(g, -1, -1)], dim=1)
                q, k, v = qkv.chunk(3, dim=-1)
                q = q if eos is None else q[:, eos]
            else:
                q, k, v = _queries_keys_values(block, x, eos)
            attended = self._attend(q, k, v)
            x = x if eos is None else x[:, eos]  # [G, N or C, W]
            x = x + block.ls_1(block.attn.out_proj(attended))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return self.ln_final(x)[:, self.inverse]  # type: ignore[no-any-return]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of the prefix to itself and of each suffix to the prefix and itself.

        Keys and values [G, N, W], queries [G, N, W] or, of EOS only, [G, C, W]; returns the queries' shape.
        """
        g, p, only_eos = k.shape[0], self.stop, q.shape[1] != k.shape[1]
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # [G, H, N or C, d]
        q = q * q.shape[-1] ** -0.5
        kp, vp = k[:, :, :p], v[:, :, :p]  # [G, H, P, d]
        out = []
        if not only_eos:
            out.append(F.scaled_dot_product_attention(q[:, :, :p], kp, vp, is_causal=True, scale=1.0))
        first, first_q = p, 0 if only_eos else p
        for n, c in self.runs:
            n_q = 1 if only_eos else n
            kb, vb = (t[:, :, first : first + n * c].unflatten(2, (c, n)) for t in (k, v))  # [G, H, c, n, d]
            qb = q[:, :, first_q : first_q + n_q * c].unflatten(2, (c, n_q))
            first, first_q = first + n * c, first_q + n_q * c
            own = qb @ kb.transpose(-1, -2)  # [G, H, c, n or 1, n]
            if not only_eos and n > 1:
                own = own + own.new_full((n, n), float("-inf")).triu(1)
            shared = (qb.flatten(2, 3) @ kp.transpose(-1, -2)).unflatten(2, qb.shape[2:4])  # [G, H, c, n or 1, P]
            weights = torch.cat([shared, own], dim=-1).softmax(dim=-1)
            from_prefix = weights[..., :p].flatten(2, 3) @ vp  # [G, H, c * n, d]
            out.append(from_prefix + (weights[..., p:] @ vb).flatten(2, 3))
        return torch.cat(out, dim=2).transpose(1, 2).reshape(g, -1, self.heads * q.shape[-1])


def _queries_keys_values(block: ResidualAttentionBlock, x: Tensor, rows: Tensor | None) -> tuple[Tensor, ...]:
    """Keys and values of [G, N, W], and queries of all or of the given rows."""
    if rows is None:
        return _qkv(block, x).chunk(3, dim=-1)
    x, w = block.ln_1(x), x.shape[-1]
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    k, v = F.linear(x, weight[w:], bias[w:]).chunk(2, dim=-1)
    return F.linear(x[:, rows], weight[:w], bias[:w]), k, v


def _qkv(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Queries, keys and values of a block's attention, [..., W] -> [..., 3W]."""
    return F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
