"""The training recipe: context vectors of a group of members, learned on cached view features (paper, equations 3, 4).

Members are independent: initialisation, sample order and view order are functions of (seed, member, epoch) alone, the
loss is a sum over members and SGD is elementwise. So a member's result does not depend on which others share its batch.

Several workers may share the classes of a member, see `class_shares.py`; each then runs this module with its share.

Shapes: G members, n images, V views, B batch, C classes, c classes of this worker's share (all C for a single one),
R workers, M context tokens, W text width, D feature width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from upl_ray.config.settings import Train
from upl_ray.upl.class_shares import ClassShares
from upl_ray.upl.prompt_encoder import PromptEncoder

VERSION = 1  # raise when the same recipe gives other contexts

# Separate streams of random numbers of one member.
_INIT, _SAMPLES, _VIEWS = 0, 1, 2


def learning_rate(epoch: int, recipe: Train) -> float:
    """Learning rate of one epoch: constant in epoch 0, then a cosine that epoch 0 does not advance (CoOp's logs)."""
    if epoch == 0:
        return recipe.warmup_lr
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / recipe.epochs))


def initial_ctx(recipe: Train, member: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Initial context vectors of one member, [M, W], drawn from N(0, init_std^2)."""
    rng = np.random.default_rng([recipe.seed, member, _INIT])
    return rng.normal(0, recipe.init_std, shape).astype(np.float32)


def epoch_batches(n: int, recipe: Train, member: int, epoch: int) -> npt.NDArray[np.int64]:
    """Indices of n images in the epoch's batches [steps, B]: shuffled, the incomplete last batch dropped.

    Fewer images than a batch holds are one batch (CoOp's loader).
    """
    order = np.random.default_rng([recipe.seed, member, _SAMPLES, epoch]).permutation(n)
    size = min(recipe.batch_size, n)
    return order[: n // size * size].reshape(-1, size)


def view_orders(n: int, n_views: int, recipe: Train, member: int) -> npt.NDArray[np.int64]:
    """The member's own order of views for each image [n, V]; epoch e uses column e modulo V."""
    rng = np.random.default_rng([recipe.seed, member, _VIEWS])
    return rng.permuted(np.tile(np.arange(n_views), (n, 1)), axis=1)


def plan_step(members: int, member_bytes: float, memory: float | None) -> tuple[int, int]:
    """How a step stays below a limit of memory: members are taken in turn before classes are.

    Args:
        members: number of members.
        member_bytes: activations of one member and all classes [bytes].
        memory: the limit [bytes]; None: no limit.

    Returns:
        The number of members that take a step together, and of chunks that the classes are encoded in.
    """
    if memory is None or members * member_bytes <= memory:
        return members, 1
    if member_bytes <= memory:
        return int(memory // member_bytes), 1
    return 1, math.ceil(member_bytes / memory)


class PromptLearner:
    """The context vectors of some members and one SGD optimiser over them.

    Args:
        encoder: the frozen text tower of the target, with the class names of this worker's share.
        view_features: [n, V, D] normalised features of the selected images; V is 1 for clean crops.
        pseudo_labels: class of each image [n], or its probabilities [n, C].
        members: numbers of the members trained here; they seed everything random.
        recipe: the training section of the configuration.
        logit_scale: 1 / temperature of the target.
        memory: limit of activations [bytes]; members, then classes are processed in turn to stay below. None: no limit.
        prior: shares of the classes among the images [C], whose logarithms are added to the logits, so that the
            contexts need not learn them (logit adjustment, arXiv 2007.07314, equation 10). None: nothing is added.
        shares: this worker's share of the classes. All workers need the same arguments, except for the encoder and the
            memory. None: a single worker.

    Raises:
        ValueError: the encoder's classes are not as many as the share's.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        view_features: Tensor,
        pseudo_labels: Tensor,
        members: Sequence[int],
        recipe: Train,
        logit_scale: float,
        memory: float | None = None,
        prior: Tensor | None = None,
        shares: ClassShares | None = None,
    ) -> None:
        self.encoder, self.recipe, self.logit_scale = encoder, recipe, logit_scale
        self.members, self.device = tuple(members), encoder.ids.device
        self.shares = ClassShares(len(encoder.ids)) if shares is None else shares
        own = self.shares.own
        if len(encoder.ids) != own.stop - own.start:
            raise ValueError(f"The encoder has {len(encoder.ids)} classes, this worker's share {own.stop - own.start}.")
        at_once, chunks = plan_step(len(self.members), encoder.activation_bytes(), memory)
        # All workers meet once for each group of members: they must form the same ones.
        self.members_at_once = self.shares.least(at_once, self.device)
        encoder.split(min(chunks, len(encoder.ids)))
        labels = pseudo_labels[:, own] if pseudo_labels.is_floating_point() else pseudo_labels  # [n, c] or [n]
        self.view_features, self.pseudo_labels = view_features.to(self.device), labels.to(self.device)
        self.log_prior = None if prior is None else prior[own].log().float().to(self.device)  # [c]
        n, n_views = view_features.shape[:2]
        orders = np.stack([view_orders(n, n_views, recipe, m) for m in members])
        self.view_orders = torch.from_numpy(orders).to(self.device)  # [G, n, V]
        start = np.stack([initial_ctx(recipe, m, encoder.ctx_shape) for m in members])
        self.ctx = nn.Parameter(torch.from_numpy(start).to(self.device))  # [G, M, W] float32
        self.optimizer = torch.optim.SGD(
            [self.ctx], lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def describe_step(self) -> str:
        """For the log: the pass through the text tower, and how many turns members and classes take."""
        groups, chunks = -(-len(self.members) // self.members_at_once), len(self.encoder.chunks)
        in_turn = [f"members in {groups} turns"] * (groups > 1) + [f"classes in {chunks} turns"] * (chunks > 1)
        in_turn += [f"classes shared by {self.shares.world} workers"] * (self.shares.world > 1)
        return ", ".join([f"prompts take the {self.encoder.mode} pass of the text tower", *in_turn])

    def train_epoch(self, epoch: int) -> list[float]:
        """One pass over the images; returns the mean loss of each member [G]."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(epoch, self.recipe)
        n, n_views = self.view_features.shape[:2]
        batches = np.stack([epoch_batches(n, self.recipe, m, epoch) for m in self.members], axis=1)
        views = self.view_orders[:, :, epoch % n_views]  # [G, n]
        total = torch.zeros(len(self.members), device=self.device)
        for batch in torch.from_numpy(batches).to(self.device):  # [G, B]
            image_features = self.view_features[batch, views.gather(1, batch)].float()  # [G, B, D]
            total += self.step(image_features, self.pseudo_labels[batch])
        return (total / len(batches)).tolist()

    def step(self, image_features: Tensor, labels: Tensor) -> Tensor:
        """One SGD step on [G, B, D] features and their labels; returns each member's loss before the step [G].

        Labels are as for `losses`.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for first in range(0, len(self.members), self.members_at_once):
            some = slice(first, first + self.members_at_once)
            loss = self.losses(self.ctx[some], image_features[some], labels[some])
            loss.sum().backward()
            losses.append(loss.detach())
        assert self.ctx.grad is not None
        self.shares.add_up(self.ctx.grad)
        self.optimizer.step()
        return torch.cat(losses)

    def losses(self, ctx: Tensor, image_features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over each member's batch (paper, equation 3), for any G members.

        Args:
            ctx: contexts [G, M, W].
            image_features: normalised [G, B, D].
            labels: pseudo-labels [G, B], or the probabilities [G, B, c] of the own classes.

        Returns:
            The losses [G]; their gradient is the own classes' part of it.
        """
        text_features = self.encoder(ctx, self.recipe.precision)  # [G, c, D]
        logits = self.logit_scale * torch.einsum("gbd,gcd->gbc", image_features, text_features)  # [G, B, c]
        if self.log_prior is not None:
            logits = logits + self.log_prior
        cross_entropy = self._cross_entropy if self.shares.world == 1 else self._shared_cross_entropy
        return cross_entropy(logits, labels).mean(1)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of every image [G, B], from the logits of all classes."""
        targets = labels.flatten(0, 1)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.float() if targets.is_floating_point() else targets, reduction="none"
        )
        return losses.view(labels.shape[:2])

    def _shared_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of every image [G, B], from the logits of the own classes [G, B, c] and the statistics of the others.

        It is lse * sum_c q_c - sum_c q_c z_c, where lse is the logarithm of sum_c exp(z_c); each worker has its part of
        these three.
        """
        share = self.shares.own
        if labels.is_floating_point():
            weight, target = labels.float().sum(-1), (labels.float() * logits).sum(-1)
        else:
            mine = (labels >= share.start) & (labels < share.stop)
            index = (labels - share.start).where(mine, 0)
            weight, target = mine.float(), logits.gather(-1, index.unsqueeze(-1)).squeeze(-1).where(mine, 0.0)
        own = torch.stack([logits.logsumexp(-1), weight, target])  # [3, G, B]
        lse, weight, target = self.shares.gather(own).unbind(1)  # each [R, G, B]
        return lse.logsumexp(0) * weight.sum(0) - target.sum(0)

    @torch.inference_mode()
    def text_features(self) -> Tensor:
        """Class features of every member [G, C, D] float32, one member at a time to bound memory."""
        return self.shares.join(torch.cat([self.encoder(ctx[None]) for ctx in self.ctx]))

    def state(self, member: int) -> dict[str, Tensor]:
        """The state from which training of one member goes on: context and momentum, each [M, W]."""
        g = self.members.index(member)
        momentum: Any = self.optimizer.state[self.ctx].get("momentum_buffer")
        momentum = torch.zeros_like(self.ctx) if momentum is None else momentum
        return {"ctx": self.ctx.detach()[g].cpu().clone(), "momentum": momentum[g].cpu().clone()}

    def load_states(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Take over contexts and momenta of all members, in the order of `members`."""
        with torch.no_grad():
            self.ctx.copy_(torch.stack([s["ctx"] for s in states]))
        self.optimizer.state[self.ctx]["momentum_buffer"] = torch.stack([s["momentum"] for s in states]).to(self.device)
