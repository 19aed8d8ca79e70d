"""Tip-Adapter: a key-value cache of the labeled images beside zero-shot (Zhang et al. 2021, arXiv 2111.03930).

Shapes: N images, n labeled images, V views, B batch, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from upl_ray.methods.few_shot import FewShot, Fitted, accuracy, generator

VERSION = 1  # raise when the same samples give another classifier
ALPHA, BETA = 1.0, 5.5  # while keys are learned (section 4.1)
# What is searched on validation: 20 values of alpha below 3 and 200 of beta below 7, from 0.1 (authors' code, README).
ALPHAS = tuple(0.1 + i * (3 - 0.1) / 20 for i in range(20))
BETAS = tuple(0.1 + i * (7 - 0.1) / 200 for i in range(200))
KEY_VIEWS = 10  # augmented views that a key averages (section 4.1)
EPOCHS, BATCH_SIZE, LR, EPS = 20, 256, 1e-3, 1e-4  # of Tip-Adapter-F, AdamW (section 4.1; eps from the authors' code)
_SAMPLES, _VIEWS = 0, 1  # separate streams of random numbers


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


def search(keys: Tensor, data: FewShot) -> dict[str, float]:
    """alpha and beta with the highest validation accuracy; among equals the smallest beta, then the smallest alpha."""
    x = data.validation_features.float()
    zero_shot, affinity = data.logit_scale * x @ data.text_features.T, x @ keys.T
    best, chosen = -1.0, {"alpha": ALPHA, "beta": BETA}
    for beta in BETAS:
        cached = cache_logits(affinity, data.labels, beta, len(data.text_features))
        for alpha in ALPHAS:
            score = accuracy(alpha * cached + zero_shot, data.validation_labels)
            if score > best:
                best, chosen = score, {"alpha": alpha, "beta": beta}
    return chosen


def tip_adapter(data: FewShot, seed: int = 0) -> Fitted:
    """Tip-Adapter without training; alpha and beta are chosen on validation. Nothing is random."""
    keys = cache_keys(data.views)
    chosen = search(keys, data)
    return Fitted(lambda x: tip_logits(x, keys, data, **chosen), chosen)


def tip_adapter_f(data: FewShot, seed: int) -> Fitted:
    """Tip-Adapter-F: the keys are learned from their cached start, then alpha and beta are chosen on validation.

    The last epoch is kept. The authors' code keeps the epoch that is best on the test images, which is not done here.
    """
    keys = learn_keys(data, seed)
    chosen = search(keys, data)
    return Fitted(lambda x: tip_logits(x, keys, data, **chosen), chosen)


def learn_keys(data: FewShot, seed: int) -> Tensor:
    """Keys [n, D] after 20 epochs of AdamW, its learning rate on a cosine over all steps."""
    keys = nn.Parameter(cache_keys(data.views))
    n, n_views = data.views.shape[:2]
    batches = list(_batches(n, n_views, seed))
    optimizer = torch.optim.AdamW([keys], lr=LR, eps=EPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for rows, views in batches:
        optimizer.zero_grad()
        logits = tip_logits(data.views[rows, views], keys, data, ALPHA, BETA)  # [B, C]
        nn.functional.cross_entropy(logits, data.labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return keys.detach()


def _batches(n: int, n_views: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their views for every step: shuffled each epoch, a random view each time, the last batch kept."""
    samples, views = generator(seed, _SAMPLES), generator(seed, _VIEWS)
    for _ in range(EPOCHS):
        view = torch.randint(n_views, (n,), generator=views)
        for rows in torch.randperm(n, generator=samples).split(BATCH_SIZE):
            yield rows, view[rows]
