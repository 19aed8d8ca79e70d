"""The training recipe: context vectors of a group of members, learned on cached view features (paper, equations 3, 4).

Members are independent: initialisation, sample order and view order are functions of (seed, member, epoch) alone, the
loss is a sum over members and SGD is elementwise. So a member's result does not depend on which others share its batch.

Shapes: G members, n images, V views, B batch, C classes, M context tokens, W text width, D feature width.
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
        encoder: the frozen text tower of the target.
        view_features: [n, V, D] normalised features of the selected images; V is 1 for clean crops.
        pseudo_labels: class of each image [n], or its probabilities [n, C].
        members: numbers of the members trained here; they seed everything random.
        recipe: the training section of the configuration.
        logit_scale: 1 / temperature of the target.
        memory: limit of activations [bytes]; members, then classes are processed in turn to stay below. None: no limit.
        prior: shares of the classes among the images [C], whose logarithms are added to the logits, so that the
            contexts need not learn them (logit adjustment, arXiv 2007.07314, equation 10). None: nothing is added.
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
    ) -> None:
        self.encoder, self.recipe, self.logit_scale = encoder, recipe, logit_scale
        self.members = tuple(members)
        self.members_at_once, chunks = plan_step(len(self.members), encoder.activation_bytes(), memory)
        encoder.split(min(chunks, len(encoder.ids)))
        self.device = encoder.ids.device
        self.view_features, self.pseudo_labels = view_features.to(self.device), pseudo_labels.to(self.device)
        self.log_prior = None if prior is None else prior.log().float().to(self.device)  # [C]
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
        self.optimizer.step()
        return torch.cat(losses)

    def losses(self, ctx: Tensor, image_features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over each member's batch (paper, equation 3), for any G members.

        Args:
            ctx: contexts [G, M, W].
            image_features: normalised [G, B, D].
            labels: pseudo-labels [G, B], or their probabilities [G, B, C].

        Returns:
            The losses [G].
        """
        text_features = self.encoder(ctx, self.recipe.precision)  # [G, C, D]
        logits = self.logit_scale * torch.einsum("gbd,gcd->gbc", image_features, text_features)  # [G, B, C]
        if self.log_prior is not None:
            logits = logits + self.log_prior
        targets = labels.flatten(0, 1)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.float() if targets.is_floating_point() else targets, reduction="none"
        )
        return losses.view(labels.shape[:2]).mean(1)

    @torch.inference_mode()
    def text_features(self) -> Tensor:
        """Class features of every member [G, C, D] float32, one member at a time to bound memory."""
        return torch.cat([self.encoder(ctx[None]) for ctx in self.ctx])

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
