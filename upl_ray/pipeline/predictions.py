"""The predictions step: label, confidence and members' votes of every image; it grows with its corpus.

Classes are taken to be as frequent as in the corpus that was learned from, where the classifier knows that.

A shard's commit holds its label-free sums beside its rows. The manifest names the files that hold the predictions of
the corpus as it is now, and is written again after every change.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyarrow as pa

from upl_ray.config.settings import Compute
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.pipeline.features import read_features
from upl_ray.pipeline.shardwise import Facts, classify_in_slices, commit_each_shard, known_in_slices
from upl_ray.storage import schema
from upl_ray.storage.step import Step
from upl_ray.upl.ensemble import Ensemble, load_ensemble
from upl_ray.upl.fusion import assign
from upl_ray.upl.tally import Tally, tally_predictions, total

_load_ensemble = lru_cache(maxsize=2)(load_ensemble)  # tasks of one process need the same one


def prediction_step(corpus: Corpus, classifier: Step, features: Step) -> Step:
    """The predictions of a classifier for a corpus, from features of its image encoder; they grow with the corpus."""
    return Step.of(corpus.step.store, "predictions", version=8, inputs={}, needs=[classifier, features, corpus.step])


def make_predictions(step: Step, todo: list[Shard], classifier: Step, features: Step, compute: Compute) -> None:
    """Classify shards from the target's cached features, and commit each with its sums."""
    commit_each_shard(
        "predictions", todo, step, lambda shard: predict_shard(shard, features, classifier.uri), compute, tally_facts
    )


def tally_facts(shard: Shard, table: pa.Table) -> Facts:
    """The sums of a shard for its commit."""
    return {"tally": tally_predictions(table, shard.rows - len(shard.removed)).to_json()}


def predict_shard(shard: Shard, features: Step, classifier_uri: str) -> pa.Table:
    """Label, class name, confidence and `known` of each image: rows of `schema.PREDICTIONS`."""
    ensemble: Ensemble = _load_ensemble(classifier_uri)
    ids, image_features = read_features(features, shard)
    probabilities, member_labels = classify_in_slices(image_features, ensemble)
    label, confidence = assign(probabilities)
    even = label
    if ensemble.class_shares is not None:
        even, _ = assign(classify_in_slices(image_features, ensemble, "even")[0])
    known = known_in_slices(image_features, ensemble)
    names = [ensemble.classnames[i] for i in label.tolist()]
    columns = [pa.array(ids, pa.string()), label, names, confidence, list(member_labels), even, known]
    return pa.table(columns, schema=schema.PREDICTIONS)


def publish(step: Step, corpus: Corpus, classifier: Step, remade: bool = False, **facts: Any) -> dict[str, Any]:
    """Write the manifest of the corpus' committed shards, unless it names just these; returns it.

    Of two runs at once, the one that publishes last wins; the next run finds what it lacks.

    Args:
        step: the predictions.
        corpus: the images as they are now; all of its shards are committed.
        classifier: the classifier that has made them.
        remade: whether shards were predicted in this run, perhaps some that the manifest names already.
        facts: JSON values that the manifest also holds.
    """
    states, published = [s.state for s in corpus.shards], step.find_manifest()
    if published and published["shards"] == states and not remade:
        return published
    commits = list(step.read_commits(states))
    tally = total(Tally.from_json(c["tally"]) for c in commits)
    return step.finish(
        corpus=corpus.step.folder,
        classifier=classifier.folder,
        images=tally.images,
        shards=states,
        parts=[part for c in commits for part in c["parts"]],
        tally=tally.to_json(),
        **facts,
    )
