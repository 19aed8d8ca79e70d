"""The exported classifier: a learned ensemble with its image encoder, usable without Ray.

Shapes: N images, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from upl_ray.config.settings import Backbone
from upl_ray.errors import ConfigError
from upl_ray.upl.backbones import resolve_backbone
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.ensemble import Ensemble, Mixture, load_ensemble
from upl_ray.upl.images import Geometry, center_crop, load


class Classifier:
    """An ensemble together with its image encoder."""

    def __init__(self, ensemble: Ensemble, clip: ClipModel) -> None:
        self.ensemble, self.clip = ensemble, clip

    @property
    def classnames(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.ensemble.classnames

    def probabilities(self, images: Iterable[Image.Image], mixture: Mixture = "corpus") -> Tensor:
        """Class probabilities [N, C] of PIL images of any size and mode; see `predict`."""
        if mixture not in get_args(Mixture):
            raise ValueError(f"The mixture {mixture!r} is unknown; use {' or '.join(map(repr, get_args(Mixture)))}.")
        return self.ensemble.probabilities(self._encode(images), mixture)

    def known(self, images: Iterable[Image.Image]) -> Tensor:
        """How far each image shows one of the classes at all, [N] in [0, 1]; see `zero_shot.known`.

        Raises:
            TypeError, ValueError: see `predict`; or no words competed with the classes when this was learned.
        """
        shares = self.ensemble.known(self._encode(images))
        if shares is None:
            raise ValueError(
                "No words competed with the classes of this classifier; set label.negatives, and run again."
            )
        return shares

    def _encode(self, images: Iterable[Image.Image]) -> Tensor:
        """Normalised features [N, D]."""
        if _is_image(images):
            raise TypeError("The classifier takes a list of PIL images; put the image into one: [image].")
        images = list(images)
        strangers = [type(x).__name__ for x in images if not _is_image(x)]
        if strangers:
            raise TypeError(
                f"The classifier takes PIL images, and was given a {strangers[0]}; open files with PIL.Image.open, and "
                f"turn arrays into images with PIL.Image.fromarray."
            )
        if not images:
            return torch.zeros(0, self.clip.spec.dim)
        crops = np.stack([center_crop(load(image), self.clip.spec.geometry) for image in images])
        return torch.from_numpy(self.clip.encode_crops(crops))

    def predict(self, images: Iterable[Image.Image], mixture: Mixture = "corpus") -> tuple[list[str], list[float]]:
        """Class name and confidence [0-1] of each image.

        Args:
            images: of any size and of all modes that `center_crop` converts.
            mixture: `corpus` for images like those learned from; `even` for images among which no class is known to be
                more frequent. It changes something only for classifiers with class shares (variant `refined`).

        Raises:
            TypeError: something else than PIL images.
            ValueError: an image that the job would reject (`Rejected`), or an unknown mixture.
        """
        confidence, label = self.probabilities(images, mixture).max(dim=1)
        return [self.classnames[i] for i in label.tolist()], confidence.tolist()


def _is_image(value: object) -> bool:
    return isinstance(value, Image.Image)


def load_classifier(uri: str | os.PathLike[str], backbone: Backbone | None = None) -> Classifier:
    """Load a finished classifier with its image encoder; Ray is not needed.

    Args:
        uri: the storage of a finished run, or a classifier's folder, as the job prints it.
        backbone: where the image encoder is found on this machine, if not where it was at training.

    Raises:
        FileNotFoundError: there is no classifier under `uri`.
        ConfigError: the image encoder cannot be found, or its weights are not those that the prompts were learned for.
    """
    try:
        ensemble = load_ensemble(os.fspath(uri))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no classifier at {os.fspath(uri)!r} ({error}); name the storage of a finished run, or a "
            f"classifier's folder."
        ) from None
    return Classifier(ensemble, ClipModel(classifier_spec(ensemble, backbone)))


def classifier_spec(ensemble: Ensemble, backbone: Backbone | None = None) -> ClipSpec:
    """The image encoder that an ensemble's prompts were learned for, found on this machine.

    Raises:
        ConfigError: it cannot be found, or its weights are not those that the prompts were learned for.
    """
    spec = resolve_backbone(backbone or Backbone(**ensemble.metadata["backbone"]))
    if spec.weights_sha256 != ensemble.metadata["weights_sha256"]:
        raise ConfigError(
            f"The weights of {spec.backbone.model} differ from those the classifier was made with; give the right ones."
        )
    about = ensemble.metadata  # activation and preprocessing too are those the prompts were learned with
    preprocess = dict(about["preprocess"])
    mean, std = tuple(preprocess.pop("mean")), tuple(preprocess.pop("std"))
    return replace(spec, quick_gelu=about["quick_gelu"], geometry=Geometry(**preprocess), mean=mean, std=std)
