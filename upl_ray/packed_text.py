"""Shared-prefix packed text encoding: exact features of all classes at a fraction of the tokens.

A causal text tower computes the positions of `[SOS] ctx_1 ... ctx_M` alike for every class, and nothing behind EOS
matters. So one sequence holds the prefix once and behind it the suffixes `[class name] . [EOS]` of all classes, packed
without padding. Every linear layer sees it as one matrix; a suffix token attends to the prefix and to its own class.

Classes are sorted by suffix length, so that each run of equal lengths is a dense block; only scores are padded.
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
        # Of the own class, query i sees keys 0 to i; runs shorter than the longest are padded.
        longest = self.runs[-1][0]
        later = torch.full((longest, longest), float("-inf"), device=ids.device).triu(1)
        self.mask = torch.cat([later[:n].repeat(c, 1) for n, c in self.runs])  # [T, longest]
        self.eos_mask = torch.cat([later[n - 1 : n].expand(c, -1) for n, c in self.runs])  # [C, longest]
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
        p, only_eos = self.stop, q.shape[1] != k.shape[1]
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # [G, H, N or C, d]
        q = q * q.shape[-1] ** -0.5
        # Split, not sliced: the backward pass of a split is one concatenation, that of a slice a tensor of zeros each.
        sizes = [n * c for n, c in self.runs]
        kp, *ks = k.split([p, *sizes], dim=2)  # prefix [G, H, P, d], then each run [G, H, n * c, d]
        vp, *vs = v.split([p, *sizes], dim=2)
        qp, qs = (None, q) if only_eos else q.split([p, sum(sizes)], dim=2)
        shared = qs @ kp.transpose(-1, -2)  # [G, H, T or C, P]
        own, mask = [], self.eos_mask if only_eos else self.mask
        longest = self.runs[-1][0]
        q_sizes = [c if only_eos else n * c for n, c in self.runs]
        for qr, kr, (n, c) in zip(qs.split(q_sizes, dim=2), ks, self.runs, strict=True):
            scores = qr.unflatten(2, (c, -1)) @ kr.unflatten(2, (c, n)).transpose(-1, -2)  # [G, H, c, n or 1, n]
            own.append(F.pad(scores.flatten(2, 3), (0, longest - n)))
        weights = torch.cat([shared, torch.cat(own, dim=2) + mask], dim=-1).softmax(dim=-1)
        of_prefix, of_own = weights.split([p, longest], dim=-1)
        out = []
        for wr, vr, (n, c) in zip(of_own.split(q_sizes, dim=2), vs, self.runs, strict=True):
            out.append((wr[..., :n].unflatten(2, (c, -1)) @ vr.unflatten(2, (c, n))).flatten(2, 3))
        attended = of_prefix @ vp + torch.cat(out, dim=2)  # [G, H, T or C, d]
        if qp is not None:
            prefix = F.scaled_dot_product_attention(qp, kp, vp, is_causal=True, scale=1.0)
            attended = torch.cat([prefix, attended], dim=2)
        of_queries: Tensor = attended.transpose(1, 2).flatten(2)
        return of_queries


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
