"""A classifier as one ONNX file, which runs without torch, open_clip and this package.

Its graph is the classifier after the crop: pixels are normalised, encoded, compared with the class features of all
members, and averaged, in fp32. The crop stays outside: PIL's antialiased resize has no counterpart in ONNX.

Shapes: N images, H, W crop height and width, C classes, D feature width.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import upl_ray
from upl_ray.config.settings import Backbone
from upl_ray.errors import ConfigError, JobError, first_line
from upl_ray.storage.store import UNREACHABLE, Store, absolute, is_remote
from upl_ray.upl.classifier import Classifier, classifier_spec
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.ensemble import Ensemble, find_classifier_folder, load_ensemble

if TYPE_CHECKING:
    from onnx import ModelProto

log = logging.getLogger(__name__)

FILE = "classifier.onnx"
OUTPUTS = ("probabilities", "known")
OPSET = 18  # the one that torch's exporter writes without converting
MAX_BYTES = 2**31 - 1  # of a protobuf message; larger models need a second file for their weights
MARGIN_BYTES = 2**24  # for the graph itself and the metadata
TOLERANCE = 1e-4  # of a probability; the towers tried differ by 1e-8 to 5e-6 (docs/export.md)
CHECKED_BATCHES = (1, 3)  # neither is the size that the graph is traced with


def export_onnx(uri: str, out: str = "", backbone: Backbone | None = None) -> dict[str, Any]:
    """Write a classifier as one ONNX file, after onnxruntime has given the classifier's probabilities with it.

    Args:
        uri: the storage of a finished run, or a classifier's folder.
        out: the file, local or in object storage; empty: `classifier.onnx` in the classifier's folder.
        backbone: where the image encoder is found on this machine, if not where it was at training.

    Returns:
        `onnx`: the file's address; `bytes`: its size; `largest_difference` of a probability in the check.

    Raises:
        ConfigError: there is no classifier under `uri`; `out` names no .onnx file; a package is missing; the image
            encoder cannot be found or exported; or the file would be too large.
        JobError: the file's probabilities differ from the classifier's; it is not written.
        Damaged: the classifier's file is not what was written.
    """
    require_packages()
    try:
        folder = find_classifier_folder(uri)
    except UNREACHABLE as error:
        raise ConfigError(
            f"There is no classifier at {uri!r} ({first_line(error)}); name the storage of a finished run, or a "
            f"classifier's folder."
        ) from None
    place = (out if is_remote(out) else absolute(out)) if out else Store(folder).join(FILE)
    parent, _, name = place.rpartition("/")
    if not name.removesuffix(".onnx") or not name.endswith(".onnx"):
        raise ConfigError(f"The file {out!r} does not end in .onnx; name one that does.")
    ensemble = load_ensemble(folder)
    clip = ClipModel(classifier_spec(ensemble, backbone), precision="fp32", device="cpu")
    data, difference = onnx_bytes(Classifier(ensemble, clip))
    Store(parent).write(name, data)
    return {"onnx": place, "bytes": len(data), "largest_difference": difference}


def require_packages() -> None:
    """Refuse to begin without the packages of the extra `onnx`."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # torch's exporter is written in it
    except ImportError as error:
        raise ConfigError(
            f"The export to ONNX lacks a package ({first_line(error)}); install them: pip install 'upl-ray[onnx]'."
        ) from None


def onnx_bytes(classifier: Classifier) -> tuple[bytes, float]:
    """The content of an ONNX file, checked, and the largest difference of its probabilities from the classifier's.

    Args:
        classifier: with its image encoder in fp32 on the CPU.

    Raises:
        ConfigError, JobError: see `export_onnx`.
    """
    from onnx.helper import set_model_props

    name = classifier.clip.spec.name
    _reject_large(classifier)
    log.info("%-12s %s, opset %d", "onnx", name, OPSET)
    model = _trace(classifier)
    set_model_props(model, onnx_metadata(classifier))
    data = model.SerializeToString()
    difference = max(_difference(classifier, data, n) for n in CHECKED_BATCHES)
    if not difference <= TOLERANCE:  # a NaN, too
        raise JobError(
            f"The ONNX file of {name} gives probabilities that differ by {difference:.2g} from the classifier's, more "
            f"than {TOLERANCE:g}, and is not written; other versions of torch and onnxruntime may export this model."
        )
    log.info("%-12s %.1f MB, probabilities differ by %.1g at most", "onnx", len(data) / 1e6, difference)
    return data, difference


def onnx_metadata(classifier: Classifier) -> dict[str, str]:
    """Values that use of the file needs, and its origin; lists and numbers are JSON."""
    about, spec = classifier.ensemble.metadata, classifier.clip.spec
    geometry = spec.geometry
    values: dict[str, Any] = {
        "classnames": list(classifier.classnames),
        "height": geometry.height,
        "width": geometry.width,
        "resize_mode": geometry.resize_mode,
        "interpolation": geometry.resample.name.lower(),
        "fill_color": geometry.fill_color,
        "mean": spec.mean,
        "std": spec.std,
        "model": spec.backbone.model,
        "pretrained": spec.backbone.pretrained or "",
        "weights_sha256": spec.weights_sha256,
        "variant": about.get("variant", ""),
        "ensemble": classifier.ensemble.average,
        "class_shares": about.get("class_shares", []),  # those the probabilities take for granted; none: even
        "upl_ray_version": upl_ray.__version__,
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}


class _Graph(torch.nn.Module):
    """uint8 crops [N, H, W, 3] -> class probabilities [N, C] float32; and `known` [N] where words compete."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.clip, self.ensemble = classifier.clip, classifier.ensemble
        self.visual = self.clip.model.visual  # the text tower is no part of the file
        self.mean = torch.tensor(self.clip.spec.mean).view(3, 1, 1)
        self.std = torch.tensor(self.clip.spec.std).view(3, 1, 1)

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        pixels = crops.permute(0, 3, 1, 2).float() / 255  # [N, 3, H, W]
        return _outputs(self.ensemble, self.clip.encode_pixels((pixels - self.mean) / self.std))


def _outputs(ensemble: Ensemble, image_features: Tensor) -> tuple[Tensor, ...]:
    """The values behind `OUTPUTS`, as far as the ensemble has them."""
    known = ensemble.known(image_features)
    return (ensemble.probabilities(image_features), *(() if known is None else (known,)))


def _trace(classifier: Classifier) -> ModelProto:
    """The graph of a classifier.

    The older exporter of torch cannot export the attention of open_clip's transformers.

    Raises:
        ConfigError: the exporter cannot translate the image tower.
    """
    geometry = classifier.clip.spec.geometry
    crops = torch.zeros(2, geometry.height, geometry.width, 3, dtype=torch.uint8)  # one would fix N to 1
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it logs each node that it does not fold
    try:
        program = torch.onnx.export(
            _Graph(classifier).eval(),
            (crops,),
            dynamo=True,
            dynamic_shapes=({0: "N"},),
            input_names=["crops"],
            output_names=list(OUTPUTS if classifier.ensemble.zero_shot else OUTPUTS[:1]),
            opset_version=OPSET,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(
            f"The image tower of {classifier.clip.spec.name} cannot be exported to ONNX "
            f"({first_line(_root_cause(error))}); use the classifier with torch, or learn one for another target."
        ) from None
    assert program is not None
    model: ModelProto = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of this machine
    return model


def _root_cause(error: BaseException) -> BaseException:
    """The error that an exporter's errors of several lines were raised from."""
    return _root_cause(error.__cause__) if error.__cause__ else error


def _difference(classifier: Classifier, data: bytes, n: int) -> float:
    """The largest difference between the probabilities of an ONNX file and those of its classifier, for N crops.

    The classifier's features are not rounded to half precision here: a value that lies between two halves would make a
    difference that says nothing about the file.
    """
    clip, rng = classifier.clip, np.random.default_rng(n)
    shape = (n, clip.spec.geometry.height, clip.spec.geometry.width, 3)
    crops = rng.integers(0, 256, shape, np.uint8)
    with torch.inference_mode():
        expected = _outputs(classifier.ensemble, clip.encode_pixels(clip.normalize_pixels(crops)))
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(run_onnx(data, crops), expected, strict=True))


def run_onnx(data: bytes, crops: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    """The values of `OUTPUTS` for uint8 crops [N, H, W, 3], by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return [np.asarray(value, np.float32) for value in session.run(None, {"crops": crops})]


def _reject_large(classifier: Classifier) -> None:
    """Refuse a model that does not fit into one file, before minutes of work."""
    tensors = [*classifier.clip.model.visual.state_dict().values(), classifier.ensemble.text_features]
    size = sum(t.numel() * t.element_size() for t in tensors)
    if size > MAX_BYTES - MARGIN_BYTES:
        raise ConfigError(
            f"The classifier of {classifier.clip.spec.name} takes {size / 1e9:.1f} GB, and one ONNX file holds at most "
            f"{MAX_BYTES / 1e9:.1f} GB; use it with torch."
        )
