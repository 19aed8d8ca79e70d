"""Zero-shot and ensemble classification on normalised features (paper, equations 1 and 2); pure torch.

Shapes: N images, C classes, D feature width, S ensemble members, T templates, J words.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

NEAREST = 0.93  # cosine to a class from which a word is another name of it


def fill_template(template: str, classnames: tuple[str, ...]) -> list[str]:
    """One prompt a class [C]: the template with the class name in place of `{}`."""
    return [template.replace("{}", name) for name in classnames]


def all_prompts(template: str | tuple[str, ...], classnames: tuple[str, ...]) -> list[str] | list[list[str]]:
    """Prompts of a template [C], or of several templates [T][C]."""
    if isinstance(template, str):
        return fill_template(template, classnames)
    return [fill_template(t, classnames) for t in template]


def average_templates(text_features: Tensor) -> Tensor:
    """Normalised mean of the class features of T templates, [T, C, D] -> [C, D] (CLIP's paper, section 3.1.4)."""
    return torch.nn.functional.normalize(text_features.mean(dim=0), dim=-1)


def probabilities(image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
    """Softmax over classes of the scaled cosine similarity, [N, D] x [C, D] -> [N, C] float32.

    Both inputs are L2-normalised; `logit_scale` is 1 / temperature, as CLIP has learned it (its exponential).
    """
    return (logit_scale * image_features.float() @ text_features.float().T).softmax(dim=-1)


# How far an image shows one of the classes at all: other words compete with them in one softmax. This is the score of
# NegLabel (arXiv 2403.20078), in one group.


def competing(negatives: Tensor, text_features: Tensor) -> Tensor:
    """Which words compete with the classes: their normalised features [J, D] are near no class [C, D]; [J] bool."""
    return (negatives.float() @ text_features.float().T).amax(dim=1) < NEAREST


def known(image_features: Tensor, text_features: Tensor, negatives: Tensor, logit_scale: float) -> Tensor:
    """Share of probability that falls on the classes while words compete, [N] float32 in [0, 1].

    Args:
        image_features: normalised [N, D].
        text_features: of the classes, normalised [C, D].
        negatives: of the words that compete, normalised [J, D]; without any, every share is 1.
        logit_scale: 1 / temperature, see `probabilities`.
    """
    x = logit_scale * image_features.float()
    classes, others = (torch.logsumexp(x @ t.float().T, dim=1) for t in (text_features, negatives))
    return torch.sigmoid(classes - others)


def member_logits(image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
    """Scaled cosine similarity to the class features of each ensemble member, [N, D] x [S, C, D] -> [N, S, C] float32.

    Inputs are as for `probabilities`.
    """
    s, c, d = text_features.shape
    logits = logit_scale * image_features.float() @ text_features.float().reshape(s * c, d).T  # [N, S * C]
    return logits.reshape(-1, s, c)  # [N, S, C]


def average_members(logits: Tensor, average: Literal["probabilities", "logits"] = "probabilities") -> Tensor:
    """Class probabilities of an ensemble from its members' logits, [N, S, C] -> [N, C].

    `probabilities` averages the members' softmax outputs (the paper); `logits` averages before one softmax, which the
    authors' code does and which equals one classifier with the mean of the members' text features.
    """
    if average == "logits":
        return logits.mean(dim=1).softmax(dim=-1)
    return torch.softmax(logits, dim=-1).mean(dim=1)
