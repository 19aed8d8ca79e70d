"""Methods with labels as runs: what each reads from storage, how it is fitted, and what memory that takes.

Shapes: n labeled images, m validation images, V views, C classes, D feature width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import torch

from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.config import Train
from upl_ray.footprint import views_bytes
from upl_ray.methods import clip_adapter, linear_probe, tip_adapter
from upl_ray.methods.few_shot import FewShot, Fitted
from upl_ray.runs import VERSION, Images, Run, write_predictions
from upl_ray.samples import read_gathered, read_samples
from upl_ray.text_features import read_text_features
from upl_ray.views import read_views

FEW_SHOT_VERSIONS = {
    "linear-probe": linear_probe.VERSION,
    "clip-adapter": clip_adapter.VERSION,
    "tip-adapter": tip_adapter.VERSION,
    "tip-adapter-f": tip_adapter.VERSION,
}
MOST_VIEWS = {"linear-probe": 0, "tip-adapter": tip_adapter.KEY_VIEWS}  # of an image that a method reads; else all


@dataclass(frozen=True)
class Samples:
    """Inputs of a method with labels, all of them in storage."""

    shots: Artifact  # selection
    views: Artifact  # of the shots
    validation: Artifact  # selection
    gathered: Artifact  # features of both
    text: Artifact


def few_shot_run(
    name: str, samples: Samples, images: Images, seed: int, recipe: Train, search: tip_adapter.Search
) -> Run:
    """Fit a method with labels and classify with it; CLIP-Adapter follows the recipe, Tip-Adapter the search."""
    settings = {"clip-adapter": recipe.model_dump(), "tip-adapter": asdict(search), "tip-adapter-f": asdict(search)}
    identity = {
        "version": [VERSION, FEW_SHOT_VERSIONS[name]],
        "method": name,
        "recipe": settings.get(name),
        "seed": seed if name in ("clip-adapter", "tip-adapter-f") else None,
        "samples": {f: a.fingerprint for f, a in vars(samples).items() if f != "gathered"},  # only where they lie
        **images.identity(),
    }
    artifact = Artifact(samples.shots.store, "method", fingerprint(identity))
    body = partial(_fit_and_classify, name, samples, images, seed, recipe, search, artifact)
    return Run((artifact,), body, memory=partial(few_shot_memory, name, samples, images.dim))


def few_shot_memory(name: str, samples: Samples, dim: int) -> int:
    """Host memory of a method with labels beside a bare process [bytes]: views, features, Tip-Adapter's affinities."""
    parts = {"shots": samples.shots, "validation": samples.validation, "gathered": samples.gathered}
    n = {part: (artifact.manifest() or {})["images"] for part, artifact in parts.items()}
    views = (samples.views.manifest() or {})["views"]
    held = views_bytes(n["shots"], min(views, MOST_VIEWS.get(name, views)), dim)
    features = 2 * views_bytes(n["gathered"], 1, dim)  # the file and what it is read into
    affinities = 2 * 4 * n["shots"] * n["validation"] if name.startswith("tip-adapter") else 0
    return held + features + affinities


def _fit_and_classify(
    name: str,
    samples: Samples,
    images: Images,
    seed: int,
    recipe: Train,
    search: tip_adapter.Search,
    artifact: Artifact,
) -> None:
    data = read_few_shot(samples, MOST_VIEWS.get(name))
    fitted = fit(name, data, seed, recipe, search)
    files = write_predictions(artifact, images, fitted.logits, len(data.text_features))
    counts = {"shots": len(data.labels), "validation": len(data.validation_labels)}
    artifact.finish(files=files, method=name, chosen=fitted.chosen, **counts)


def fit(name: str, data: FewShot, seed: int, recipe: Train, search: tip_adapter.Search) -> Fitted:
    """Fit a method by its name."""
    if name == "linear-probe":
        return linear_probe.linear_probe(data, seed)
    if name == "clip-adapter":
        return clip_adapter.clip_adapter(data, seed, recipe)
    tip = {"tip-adapter": tip_adapter.tip_adapter, "tip-adapter-f": tip_adapter.tip_adapter_f}[name]
    return tip(data, seed, search)


def read_few_shot(samples: Samples, most_views: int | None = None) -> FewShot:
    """What a method with labels may see, from storage, images in the order of ids; without a limit all their views."""
    features = torch.from_numpy(read_gathered(samples.gathered, samples.shots)).float()
    none = torch.empty(len(features), 0, features.shape[1], dtype=torch.float16)
    validation = read_samples(samples.validation)
    text_features, logit_scale = read_text_features(samples.text)
    return FewShot(
        features=features,
        views=none if most_views == 0 else read_views(samples.views, samples.shots, most_views)[0],
        labels=torch.tensor(list(read_samples(samples.shots).values())),
        validation_features=torch.from_numpy(read_gathered(samples.gathered, samples.validation)).float(),
        validation_labels=torch.tensor(list(validation.values())),
        text_features=text_features,
        logit_scale=logit_scale,
    )
