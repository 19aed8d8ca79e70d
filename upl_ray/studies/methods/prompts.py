"""Recipes of the methods that learn prompts; all of them run the same prompt learner on another selection of images.

* UPL: the top-K of the target's own pseudo-labels, UPL*: of the fused ones (arXiv 2204.03649, sections 3.2 and 3.3).
* Threshold self-training: every image whose own pseudo-label has a confidence of at least 0.9, as in FixMatch
  (Sohn et al. 2020, arXiv 2001.07685, equation 4) and in figure 3 of UPL's paper.
* CoOp: a few images with their true labels (Zhou et al. 2021, arXiv 2109.01134, section 4.1).
"""

from __future__ import annotations

from upl_ray.config.settings import Train

# Epochs by the number of shots; 50 for ImageNet whatever the number (CoOp, section 4.1).
COOP_EPOCHS = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
IMAGENET_EPOCHS = 50


def coop_epochs(shots: int, dataset: str) -> int:
    """Epochs of CoOp; for a number of shots that it does not list, those of the next smaller one."""
    if dataset == "imagenet":
        return IMAGENET_EPOCHS
    return COOP_EPOCHS[max(s for s in COOP_EPOCHS if s <= shots)]


def coop_recipe(shots: int, dataset: str, seed: int) -> Train:
    """One prompt of 16 context vectors, SGD at 0.002, batch 32; what is left out here is the default of `Train`."""
    return Train(members=1, epochs=coop_epochs(shots, dataset), seed=seed)
