"""What a run will make: fingerprints follow from the configuration and the corpus alone, so all is known beforehand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.features import feature_artifact, forgotten_shards
from upl_ray.inputs import Inputs
from upl_ray.label import pseudo_label_artifact, unfinished, without_rows
from upl_ray.members import member_artifact
from upl_ray.predictions import prediction_artifact
from upl_ray.selection import selection_artifact
from upl_ray.text_features import text_artifact
from upl_ray.views import view_artifact

CLASSIFIER_VERSION = 1


@dataclass(frozen=True)
class Chain:
    """The artifacts of one variant, in the order in which they are made."""

    texts: tuple[Artifact, ...]
    pseudo: Artifact
    selection: Artifact
    views: Artifact
    members: Artifact
    classifier: Artifact
    predictions: Artifact


def plan_chain(inputs: Inputs, variant: str) -> Chain:
    """Where everything between features and predictions of a variant lies, whether it exists or not."""
    config, store, classnames = inputs.config, inputs.store, inputs.classnames
    labelers = inputs.labelers(variant)
    pseudo = pseudo_label_artifact(store, labelers, classnames, config.template)
    selection = selection_artifact(store, inputs.corpus, pseudo, config.label.top_k)
    views = view_artifact(store, selection, inputs.target, config.views)
    members = member_artifact(store, views, inputs.target, classnames, config.train)
    identity = {
        "version": CLASSIFIER_VERSION,
        "members": members.fingerprint,
        "count": config.train.members,
        "ensemble": config.train.ensemble,
    }
    classifier = Artifact(store, "classifier", fingerprint(identity))
    return Chain(
        texts=tuple(text_artifact(store, s, classnames, config.template) for s in labelers),
        pseudo=pseudo,
        selection=selection,
        views=views,
        members=members,
        classifier=classifier,
        predictions=prediction_artifact(inputs.corpus, classifier, inputs.target),
    )


def embedded_backbones(inputs: Inputs) -> list[str]:
    """Names of the backbones that have features: where these are dropped after use, only of those that are used."""
    used = {s.name for variant in inputs.config.variants for s in inputs.labelers(variant)} | {inputs.target.name}
    return [name for name in inputs.specs if inputs.config.keep_features == "all" or name in used]


def needed_features(inputs: Inputs, chains: dict[str, Chain]) -> dict[str, set[str]]:
    """Shards whose features of each backbone must be in storage for this run: backbone name -> shard ids.

    All of them; or, where features are dropped after use, only those that pseudo-labels or predictions still miss, and
    those whose record of rejected images was damaged.
    """
    keep = inputs.config.keep_features
    everything = {s.id for c in inputs.corpora for s in c.shards}
    if keep == "all":
        return dict.fromkeys(inputs.specs, everything)
    needed: dict[str, set[str]] = defaultdict(set)
    for variant, chain in chains.items():
        unlabeled, unpredicted = (_unread(inputs, made) for made in (chain.pseudo, chain.predictions))
        for labeler in inputs.labelers(variant):
            needed[labeler.name] |= unlabeled
        needed[inputs.target.name] |= unlabeled | unpredicted
    shards = [s for c in inputs.corpora for s in c.shards]
    for name in needed:
        needed[name] |= forgotten_shards(feature_artifact(inputs.store, inputs.specs[name]), shards)
    if keep == "target":
        needed[inputs.target.name] = everything
    return dict(needed)


def _unread(inputs: Inputs, artifact: Artifact) -> set[str]:
    return {s.id for s in without_rows(unfinished(inputs.corpora, artifact), artifact)}


def present_features(inputs: Inputs, needed: dict[str, set[str]]) -> bool:
    """True if nothing has to be embedded."""
    return all(
        ids <= feature_artifact(inputs.store, inputs.specs[name]).committed() for name, ids in needed.items() if ids
    )
