"""What every method of a comparison, and every point of an ablation, shares: the main job's steps, and predictions.

Shapes: N images, S members.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from upl_ray import train
from upl_ray.artifacts import Artifact
from upl_ray.config import Config, ConfigError, Train, Views
from upl_ray.corpus import Corpus
from upl_ray.features import feature_artifact
from upl_ray.inputs import Inputs, prepare
from upl_ray.members import member_artifact
from upl_ray.metrics import UNLABELED, Labels
from upl_ray.pipeline import cluster_for, embed_corpora, label_corpora, select_images
from upl_ray.plan import Chain, plan_chain
from upl_ray.ray_cluster import RayCluster
from upl_ray.runs import Images, Run, read_predictions
from upl_ray.score import labels_of
from upl_ray.views import view_artifact


@dataclass(frozen=True)
class Study:
    """What all methods of one comparison share."""

    inputs: Inputs
    chains: dict[str, Chain]
    images: Images
    rejected: dict[str, str]
    cluster: RayCluster

    def seeds(self, runs: int) -> list[int]:
        """One for each of so many runs; the first is the main job's."""
        return [self.inputs.config.train.seed + i for i in range(runs)]


@dataclass(frozen=True)
class Cell:
    """Predictions of one method, number of shots and seed; `run` makes them, or they are pseudo-labels."""

    method: str
    shots: int | None
    artifact: Artifact
    run: Run | None = None


def study_inputs(config: Config) -> Inputs:
    """What a comparison or an ablation works on, checked before work starts.

    Raises:
        ConfigError: the configuration cannot work, or there are no scored images with labels.
    """
    if not config.dataset.name and (not config.scored.uris or config.scored.labels == "none"):
        raise ConfigError(
            "scored.uri or scored.labels is empty; held-out images with labels are needed here, as in "
            "`scored: {uri: held-out, labels: folders}`."
        )
    config = config.model_copy(update={"variants": ("upl*", "upl"), "keep_features": "all"})
    return prepare(config, validation=True)


def open_study(inputs: Inputs, transductive: bool = False) -> Study:
    """The main job's steps up to the selections of both variants, as far as they are missing.

    Raises:
        ConfigError: no scored image has a label that is a class.
        JobError: see `pipeline.run`.
    """
    config = inputs.config
    chains: dict[str, Chain] = {v: plan_chain(inputs, v) for v in config.variants}
    cluster = cluster_for(inputs)
    with cluster.watched():
        rejected = embed_corpora(inputs, chains, cluster)
        for variant, chain in chains.items():
            label_corpora(inputs, inputs.labelers(variant), config.template, cluster)
            select_images(inputs, chain.pseudo, chain.selection, config.label.top_k, cluster)
    assert inputs.scored is not None
    parts = {"scored": inputs.scored.shards}
    if transductive:
        parts["corpus"] = inputs.corpus.shards
    images = Images(feature_artifact(inputs.store, inputs.target), parts, inputs.target.dim)
    study = Study(inputs, chains, images, rejected, cluster)
    true_labels_of(study, "scored")  # better refused now than when everything has been learned
    return study


def prompt_task(inputs: Inputs, selection: Artifact, recipe: Train, views: Views) -> train.Task:
    """What learning prompts from a selection takes; the artifacts are those that the main job would make."""
    bank = view_artifact(inputs.store, selection, inputs.target, views)
    members = member_artifact(inputs.store, bank, inputs.target, inputs.classnames, recipe)
    return train.Task(members, selection, bank, inputs.target, inputs.classnames, recipe, inputs.config.compute)


def true_labels_of(study: Study, part: str) -> tuple[list[str], Labels]:
    """Ids of the labeled images of a part that every backbone could read, sorted, and their true classes [N].

    Raises:
        ConfigError: no image has a label that is a class.
    """
    inputs, pseudo = study.inputs, study.chains["upl*"].pseudo
    corpus, source = part_of(inputs, part)
    pairs: list[tuple[str, int]] = []
    for shard in corpus.shards:
        ids = pseudo.read_shard(shard.state, ["image_id"])["image_id"].to_pylist()
        labels = labels_of(corpus, shard, ids, source, inputs.classnames)
        pairs += [(i, int(c)) for i, c in zip(ids, labels, strict=True) if c != UNLABELED]
    if not pairs:
        raise ConfigError(f"{part}.labels: no image of {corpus.name} has a label that is one of the class names.")
    pairs.sort()
    return [i for i, _ in pairs], np.array([c for _, c in pairs])


def part_of(inputs: Inputs, part: str) -> tuple[Corpus, str]:
    """Images of a part and where their labels are."""
    if part == "corpus":
        return inputs.corpus, inputs.config.corpus.labels
    assert inputs.scored is not None
    return inputs.scored, inputs.config.scored.labels


def votes_of(study: Study, cell: Cell, part: str, ids: list[str]) -> Labels:
    """What a cell says about these images [N, 1 + S]."""
    if cell.run:
        return read_predictions(cell.artifact, part, ids)
    label_of: dict[str, int] = {}
    for shard in part_of(study.inputs, part)[0].shards:
        table = cell.artifact.read_shard(shard.state, ["image_id", "pseudo_label"])
        label_of |= dict(zip(table["image_id"].to_pylist(), table["pseudo_label"].to_pylist(), strict=True))
    return np.array([[label_of[i]] for i in ids])
