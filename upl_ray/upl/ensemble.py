"""The learned ensemble: its members' prompts and class features in one self-describing safetensors file.

Shapes: S members, C classes, D feature width, M context tokens, W text width, N images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from upl_ray.storage.step import MANIFEST
from upl_ray.storage.store import Store, absolute, is_remote
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.tensors import load_tensors, save_tensors
from upl_ray.upl.zero_shot import average_members, known, member_logits

FILE = "classifier.safetensors"
ZERO_SHOT = ("zero_shot", "negatives")  # names of tensors, see `Ensemble.zero_shot`
Mixture = Literal["corpus", "even"]  # of classes


@dataclass(frozen=True)
class Ensemble:
    """Prompts, their class features and how to apply them to image features; no image encoder."""

    text_features: Tensor  # [S, C, D] float32, normalised
    ctx: Tensor  # [S, M, W] float32
    metadata: dict[str, Any]
    zero_shot: tuple[Tensor, Tensor] | None = None  # of the template: classes [C, D], words that compete [J, D]

    @property
    def classnames(self) -> tuple[str, ...]:
        """Names of the C classes, in the order of indices."""
        return tuple(self.metadata["classnames"])

    @property
    def average(self) -> Literal["probabilities", "logits"]:
        """The quantity that is averaged over members."""
        return "logits" if self.metadata["ensemble"] == "logits" else "probabilities"

    @property
    def class_shares(self) -> Tensor | None:
        """Shares of the C classes in the corpus that the prompts were learned beside; None where they were not."""
        shares = self.metadata.get("class_shares")
        return None if shares is None else torch.tensor(shares)

    def classify(self, image_features: Tensor, mixture: Mixture = "corpus") -> tuple[Tensor, Tensor]:
        """Classify normalised image features [N, D].

        Args:
            image_features: of images of any classes.
            mixture: how frequent the classes are: as in the corpus, if the ensemble has its `class_shares`, or even.

        Returns:
            Class probabilities of the ensemble [N, C] float32, and the class index that each member alone gives [N, S]
            int64, both from the same logits.
        """
        logits = member_logits(image_features, self.text_features, self.metadata["logit_scale"])  # [N, S, C]
        if mixture == "corpus" and self.class_shares is not None:
            logits = logits + self.class_shares.log().to(logits.device)
        return average_members(logits, self.average), logits.argmax(dim=-1)

    def known(self, image_features: Tensor) -> Tensor | None:
        """How far normalised image features [N, D] show one of the classes at all, [N] in [0, 1]; see `known`.

        By the template's text features, beside which other words compete; None where the run had no such words.
        """
        if self.zero_shot is None:
            return None
        classes, words = (x.to(image_features.device) for x in self.zero_shot)
        return known(image_features, classes, words, self.metadata["logit_scale"])

    def probabilities(self, image_features: Tensor, mixture: Mixture = "corpus") -> Tensor:
        """Class probabilities of the ensemble [N, C] float32 for normalised image features [N, D]; see `classify`."""
        return self.classify(image_features, mixture)[0]


def ensemble_bytes(
    spec: ClipSpec,
    text_features: Tensor,
    ctx: Tensor,
    zero_shot: tuple[Tensor, Tensor] | None = None,
    **metadata: Any,
) -> bytes:
    """The content of a classifier file.

    Args:
        spec: the image encoder that the prompts were learned for.
        text_features: class features of each member [S, C, D] float32.
        ctx: context vectors of each member [S, M, W] float32.
        zero_shot: see `Ensemble.zero_shot`.
        metadata: `classnames`, `logit_scale`, `ensemble` (see `Ensemble.average`), and more for readers.
    """
    about = {
        "format": 1,
        "model": spec.backbone.model,
        "pretrained": spec.backbone.pretrained,
        "weights_sha256": spec.weights_sha256,
        "quick_gelu": spec.quick_gelu,
        "preprocess": {**asdict(spec.geometry), "mean": spec.mean, "std": spec.std},
        "backbone": spec.backbone.model_dump(),
        **metadata,
    }
    tensors = {"text_features": text_features, "ctx": ctx}
    tensors |= dict(zip(ZERO_SHOT, zero_shot, strict=True)) if zero_shot else {}
    return save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, about)


def find_classifier_folder(uri: str) -> str:
    """The folder of a classifier: `uri` itself, that of its file, or the one that the run in this storage exported.

    Raises:
        FileNotFoundError: there is neither a classifier nor a finished run under `uri`.
    """
    uri = uri.removesuffix(f"/{FILE}") if uri != FILE else "."
    folder = uri.rstrip("/") if is_remote(uri) else absolute(uri)
    store = Store(folder)
    if FILE in store.names(""):
        return folder
    try:
        exported = str(store.read_json("run.json")["classifier"])
    except (FileNotFoundError, KeyError):
        raise FileNotFoundError(f"neither {FILE} nor the run.json of a finished run lies there") from None
    name = exported.rpartition("/")[2]  # the storage may have been moved since
    if FILE not in store.names(name):
        raise FileNotFoundError(
            f"the file {name}/{FILE} of a finished run is gone; its job makes it when it is run again"
        )
    return store.join(name)


def load_ensemble(uri: str) -> Ensemble:
    """Read the prompts and class features of a classifier, without its image encoder.

    Args:
        uri: the classifier's folder, or the storage of a finished run.

    Raises:
        FileNotFoundError: there is no classifier under `uri`.
        Damaged: the file is not what was written.
    """
    store = Store(find_classifier_folder(uri))
    remedy = store.join(MANIFEST) if MANIFEST in store.names("") else ""  # none beside a file that was taken away
    tensors, about = load_tensors(store.read(FILE), store.join(FILE), remedy)
    classes, words = (tensors.get(name) for name in ZERO_SHOT)
    zero_shot = None if classes is None or words is None else (classes, words)
    return Ensemble(tensors["text_features"], tensors["ctx"], about, zero_shot)
