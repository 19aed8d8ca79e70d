"""CLIP-Adapter: a small residual network behind the image encoder (Gao et al. 2021, arXiv 2110.04544, equations 4-7).

Shapes: N images, n labeled images, V views, B batch, C classes, D feature width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from upl_ray.config.settings import Train
from upl_ray.studies.methods.few_shot import FewShot, Fitted, best_on_validation, generator
from upl_ray.upl.prompt_learner import epoch_batches, learning_rate, view_orders

VERSION = 1  # raise when the same samples give another classifier
REDUCTION = 4  # D -> D / 4 -> D (section 4.1)
RATIOS = (0.2, 0.4, 0.6, 0.8)  # alpha, chosen on validation (section 4.1 searches it for each data set)


class Adapter(nn.Module):
    """`f* = alpha ReLU(ReLU(f W1) W2) + (1 - alpha) f`, normalised.

    There is no bias, so the network is positively homogeneous: features normalised beforehand give the same result.
    """

    def __init__(self, dim: int, ratio: float, seed: int) -> None:
        super().__init__()
        self.ratio = ratio
        hidden, rng = max(dim // REDUCTION, 1), generator(seed)
        self.down = nn.Parameter(_uniform((dim, hidden), dim, rng))
        self.up = nn.Parameter(_uniform((hidden, dim), hidden, rng))

    def forward(self, image_features: Tensor) -> Tensor:
        """[..., D] -> adapted, normalised [..., D]."""
        adapted = torch.relu(torch.relu(image_features @ self.down) @ self.up)
        return nn.functional.normalize(self.ratio * adapted + (1 - self.ratio) * image_features, dim=-1)


def _uniform(shape: tuple[int, int], fan_in: int, rng: torch.Generator) -> Tensor:
    """Initial weights as `nn.Linear` draws them."""
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=rng)


def fit_adapter(data: FewShot, ratio: float, recipe: Train) -> Adapter:
    """Train an adapter by cross-entropy over all classes on augmented views."""
    adapter = Adapter(data.features.shape[1], ratio, recipe.seed)
    optimizer = torch.optim.SGD(
        adapter.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    n, n_views = data.views.shape[:2]
    orders = view_orders(n, n_views, recipe, member=0)
    for epoch in range(recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch, recipe)
        for batch in epoch_batches(n, recipe, 0, epoch):
            optimizer.zero_grad()
            image_features = data.views[batch, orders[batch, epoch % n_views]].float()  # [B, D]
            logits = data.logit_scale * adapter(image_features) @ data.text_features.T  # [B, C]
            nn.functional.cross_entropy(logits, data.labels[batch]).backward()
            optimizer.step()
    return adapter.requires_grad_(False)


def clip_adapter(data: FewShot, recipe: Train) -> Fitted:
    """The visual adapter, with alpha chosen on validation.

    The authors' trainer runs inside CoOp's code, so the recipe is CoOp's: SGD, learning rate 0.002, cosine, batch 32.
    """
    adapters = {ratio: fit_adapter(data, ratio, recipe) for ratio in RATIOS}

    def logits(image_features: Tensor, ratio: float) -> Tensor:
        adapted: Tensor = adapters[ratio](image_features.float())
        return data.logit_scale * adapted @ data.text_features.T

    candidates = [{"alpha": ratio} for ratio in RATIOS]
    best = best_on_validation(
        candidates, lambda c: logits(data.validation_features, c["alpha"]), data.validation_labels
    )
    return Fitted(lambda x: logits(x, best["alpha"]), best)
