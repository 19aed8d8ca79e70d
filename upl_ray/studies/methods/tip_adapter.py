"""Tip-Adapter: a key-value cache of the labeled images beside zero-shot (Zhang et al. 2021, arXiv 2111.03930).

Shapes: N images, n labeled images, V views, B batch, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upl_ray.studies.methods.few_shot import FewShot, Fitted, accuracy, generator

VERSION = 2  # raise when the same samples give another classifier
STEPS_OF_ALPHA, STEPS_OF_BETA, LOWEST = 20, 200, 0.1  # of every search
KEY_VIEWS = 10  # augmented views that a key averages (section 4.1)
BATCH_SIZE, LR, EPS = 256, 1e-3, 1e-4  # of Tip-Adapter-F, AdamW (section 4.1; eps from the authors' code)
_SAMPLES, _VIEWS = 0, 1  # separate streams of random numbers


@dataclass(frozen=True)
class Search:
    """Ranges of the search on validation, which begins at 0.1, and how Tip-Adapter-F learns its keys before it."""

    beta_below: float
    alpha_below: float
    alpha: float  # while keys are learned, as the next two
    beta: float = 1.0
    epochs: int = 20
    geometric: bool = False  # steps are equal ratios, not differences

    def alphas(self) -> tuple[float, ...]:
        """The values of alpha that are tried."""
        return self._steps(self.alpha_below, STEPS_OF_ALPHA)

    def betas(self) -> tuple[float, ...]:
        """The values of beta that are tried."""
        return self._steps(self.beta_below, STEPS_OF_BETA)

    def _steps(self, below: float, count: int) -> tuple[float, ...]:
        if self.geometric:
            return tuple(LOWEST * (below / LOWEST) ** (i / count) for i in range(count))
        return tuple(LOWEST + i * (below - LOWEST) / count for i in range(count))


# The authors' settings (github.com/gaopengcuhk/Tip-Adapter, configs/*.yaml: search_scale, init_alpha, init_beta,
# train_epoch), by CoOp's names of the data sets. Of Caltech101, Food101, Flowers, Cars, SUN397 and UCF101 the numbers
# were read in two copies of that code, which agree.
SEARCHES = {
    "imagenet": Search(7, 3, 1.17),
    "caltech101": Search(12, 5, 3),
    "dtd": Search(13, 13, 2),
    "eurosat": Search(12, 10, 2, epochs=100),
    "fgvc_aircraft": Search(30, 30, 5),
    "food101": Search(10, 10, 1.17),
    "oxford_flowers": Search(50, 50, 10),
    "oxford_pets": Search(7, 3, 1.17),
    "stanford_cars": Search(20, 10, 3),
    "sun397": Search(12, 10, 1.17),
    "ucf101": Search(7, 3, 3),
}
# Of all other images, whose best values are unknown: as far as the authors' widest search, in geometric steps, half of
# which lie below 3, where their narrowest ends. Keys are learned with the values of the paper (section 4.1).
ANY_IMAGES = Search(50, 50, 1.0, 5.5, geometric=True)


def search_of(dataset: str) -> Search:
    """The authors' settings for one of the paper's data sets; a wide search for any other."""
    return SEARCHES.get(dataset, ANY_IMAGES)


def cache_keys(views: Tensor) -> Tensor:
    """Normalised mean of the first ten views of each labeled image, [n, V, D] -> [n, D]."""
    return nn.functional.normalize(views[:, :KEY_VIEWS].float().mean(dim=1), dim=-1)


def cache_logits(affinity: Tensor, labels: Tensor, beta: float, n_classes: int) -> Tensor:
    """`exp(-beta (1 - f F^T)) L` with one-hot L: affinity [N, n] and labels [n] -> [N, C] (equation 5)."""
    weights = torch.exp(-beta * (1 - affinity))
    return weights.new_zeros(len(weights), n_classes).index_add(1, labels, weights)


def tip_logits(image_features: Tensor, keys: Tensor, data: FewShot, alpha: float, beta: float) -> Tensor:
    """`alpha exp(-beta (1 - f F^T)) L + logit_scale f W^T` [N, C] (equation 6)."""
    x = image_features.float()
    cached = cache_logits(x @ keys.T, data.labels, beta, len(data.text_features))
    return alpha * cached + data.logit_scale * x @ data.text_features.T


def best_weights(keys: Tensor, data: FewShot, search: Search) -> dict[str, float]:
    """alpha and beta with the highest validation accuracy; among equals the smallest beta, then the smallest alpha."""
    x = data.validation_features.float()
    zero_shot, affinity = data.logit_scale * x @ data.text_features.T, x @ keys.T
    best, chosen = -1.0, {"alpha": search.alpha, "beta": search.beta}
    for beta in search.betas():
        cached = cache_logits(affinity, data.labels, beta, len(data.text_features))
        for alpha in search.alphas():
            score = accuracy(alpha * cached + zero_shot, data.validation_labels)
            if score > best:
                best, chosen = score, {"alpha": alpha, "beta": beta}
    return chosen


def tip_adapter(data: FewShot, search: Search) -> Fitted:
    """Tip-Adapter without training; alpha and beta are chosen on validation. Nothing is random."""
    keys = cache_keys(data.views)
    chosen = best_weights(keys, data, search)
    return Fitted(lambda x: tip_logits(x, keys, data, **chosen), chosen)


def tip_adapter_f(data: FewShot, seed: int, search: Search) -> Fitted:
    """Tip-Adapter-F: the keys are learned from their cached start, then alpha and beta are chosen on validation.

    The last epoch is kept. The authors' code keeps the epoch that is best on the test images, which is not done here.
    """
    keys = learn_keys(data, seed, search)
    chosen = best_weights(keys, data, search)
    return Fitted(lambda x: tip_logits(x, keys, data, **chosen), chosen)


def learn_keys(data: FewShot, seed: int, search: Search) -> Tensor:
    """Keys [n, D] after `search.epochs` epochs of AdamW, its learning rate on a cosine over all steps."""
    keys = nn.Parameter(cache_keys(data.views))
    n, n_views = data.views.shape[:2]
    batches = list(_batches(n, n_views, seed, search.epochs))
    optimizer = torch.optim.AdamW([keys], lr=LR, eps=EPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for rows, views in batches:
        optimizer.zero_grad()
        logits = tip_logits(data.views[rows, views], keys, data, search.alpha, search.beta)  # [B, C]
        nn.functional.cross_entropy(logits, data.labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return keys.detach()


def _batches(n: int, n_views: int, seed: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their views for every step: shuffled each epoch, a random view each time, the last batch kept."""
    samples, views = generator(seed, _SAMPLES), generator(seed, _VIEWS)
    for _ in range(epochs):
        view = torch.randint(n_views, (n,), generator=views)
        for rows in torch.randperm(n, generator=samples).split(BATCH_SIZE):
            yield rows, view[rows]
