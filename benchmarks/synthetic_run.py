"""A finished run without models: real image files, listing, selection, scores and tables; only the labels are drawn.

For reports of any size, in benchmarks and tests; nothing in it needs Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from upl_ray import pseudo_labels, schema, score
from upl_ray.artifacts import Artifact, Store
from upl_ray.config import Config
from upl_ray.corpus import Corpus, Shard, list_corpus
from upl_ray.datasets.open import open_dataset
from upl_ray.figures import figures_of
from upl_ray.predict_config import Drift
from upl_ray.predictions import publish
from upl_ray.report.finished import word_artifact
from upl_ray.snapshot import keep_snapshot

LABELERS = ("alpha", "beta", "target")
DIGEST = "0123456789ab"  # stands for a fingerprint: nothing is looked up by it


@dataclass(frozen=True)
class SyntheticRun:
    """What to make up."""

    storage: Path
    images: Path  # image files in folders of their classes (names or numbers), or the root of a data set
    classnames: tuple[str, ...]
    variants: tuple[str, ...] = ("upl*", "upl")
    labels: str = "folders"
    scored: Path | None = None  # held-out images in folders of their classes
    dataset: str = ""  # instead of `images`, `labels` and `scored`: its name
    shard_size: int = 1000
    members: int = 8
    epochs: int = 5
    top_k: int = 4
    starved: tuple[int, ...] = ()  # classes that nobody predicts
    rejected: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    def write(self) -> Store:
        """Write the whole storage."""
        store = Store(str(self.storage))
        config = self.config()
        opened = open_dataset(config, store)
        sources = {p: s for p, s in (("corpus", opened.corpus), ("scored", opened.scored)) if s.uris}
        corpora = {part: list_corpus(store, source, self.shard_size) for part, source in sources.items()}
        corpus = corpora["corpus"]
        kept = {part: keep_snapshot(c, self.rejected if part == "corpus" else {}) for part, c in corpora.items()}
        made = {variant: self._variant(store, corpora, variant) for variant in self.variants}
        for name in LABELERS:
            Artifact(store, f"features-{name}", DIGEST).finish(backbone={}, identity={})
        folders = {v: {step: a.folder for step, a in steps.items()} for v, steps in made.items()}
        rules: dict[str, str] = {part: source.labels for part, source in sources.items()}
        scores = {v: self._scores(corpora, rules, v, steps) for v, steps in made.items()}
        first = made[self.variants[0]]
        store.write_json("config.json", config.model_dump(mode="json"))
        store.write_sealed(
            "run.json",
            {
                "status": "done",
                "seconds": 12.3,
                "storage": store.uri,
                "classifier": first["classifier"].uri,
                "classifiers": {v: steps["classifier"].uri for v, steps in made.items()},
                "predictions": first["predictions"].uri,
                "target": "target",
                "images": corpus.images,
                "rejected": len(self.rejected),
                "rejected_by_reason": {r.partition(":")[0]: 1 for r in self.rejected.values()},
                "starved_classes": scores[self.variants[0]]["selection"]["starved"],
                "scores": scores,
                "report": store.join("report/index.html"),
                "sources": {p: {"uri": s.uri, "labels": s.labels} for p, s in sources.items()},
                "artifacts": {
                    "corpora": {part: artifact.folder for part, artifact in kept.items()},
                    "features": {name: f"features-{name}-{DIGEST}" for name in LABELERS},
                    "variants": folders,
                },
                "steps": {"features": 4.5, folders[self.variants[0]]["members"]: 61.0},
                "config": config.model_dump(mode="json"),
            },
        )
        return store

    def config(self) -> Config:
        """The configuration that such a run would have."""
        scored = {"uri": str(self.scored), "labels": "folders"} if self.scored else {}
        corpus = {"uri": str(self.images), "labels": self.labels}
        given = {"corpus": corpus, "scored": scored, "classnames": list(self.classnames)}
        return Config.model_validate(
            {
                **({"dataset": {"name": self.dataset, "root": str(self.images)}} if self.dataset else given),
                "template": "a photo of {}.",
                "backbones": [{"model": "RN50", "pretrained": "openai", "name": name} for name in LABELERS],
                "target": "target",
                "variants": list(self.variants),
                "storage_path": str(self.storage),
                "label": {"top_k": self.top_k},
                "train": {"members": self.members, "epochs": self.epochs},
                "compute": {"shard_size": self.shard_size},
            }
        )

    def labelers(self, variant: str) -> tuple[str, ...]:
        """Names in the order of columns."""
        return LABELERS if variant == "upl*" else ("target",)

    def _variant(self, store: Store, corpora: dict[str, Corpus], variant: str) -> dict[str, Artifact]:
        digest = f"{len(variant)}{DIGEST[1:]}"
        steps = ("pseudo_labels", "selection", "views", "members", "classifier", "predictions")
        pseudo, selection, views, members, classifier, predictions = (Artifact(store, s, digest) for s in steps)
        rng = np.random.default_rng([self.seed, len(variant)])
        chosen = []
        for part, shard, ids in _shards(corpora):
            table = self._pseudo(ids, len(self.labelers(variant)), rng)
            pseudo.commit(shard.state, parts=[pseudo.write_part(shard.state, table)], rows=len(table))
            commit_predictions(predictions, shard, self._predictions(table, rng))
            if part == "corpus":
                of = pa.array([shard.id] * len(table), pa.string())
                chosen.append(table.select(["image_id", "pseudo_label", "confidence"]).append_column("shard", of))
        selection.finish(files=selection.write_file("selection.parquet", pseudo_labels.top_k(chosen, self.top_k)))
        members.finish(files=members.write_file("history.parquet", self._history(rng)))
        words = rng.choice(["it", "<b>", "photo", "…"], (self.members, 4)).tolist()
        word_artifact(classifier).finish(words=words, distances=np.ones((self.members, 4)).tolist(), between_words=0.5)
        classifier.finish(classnames=list(self.classnames), variant=variant, members=members.folder)
        publish(predictions, corpora["corpus"], self.rejected, classifier, Drift())
        for artifact in (pseudo, views):
            artifact.finish()
        return {
            "pseudo": pseudo,
            "selection": selection,
            "views": views,
            "members": members,
            "classifier": classifier,
            "predictions": predictions,
        }

    def _drawn(self, true: npt.NDArray[Any], share: float, rng: np.random.Generator) -> npt.NDArray[Any]:
        """The truth, or in a share of cases another class; never a starved one."""
        c = len(self.classnames)
        labels = np.where(rng.random(len(true)) < share, rng.integers(0, c, len(true)), true)
        allowed = np.array([i for i in range(c) if i not in self.starved])
        return np.where(np.isin(labels, self.starved), allowed[labels % len(allowed)], labels).astype(np.int32)

    def _true(self, ids: list[str]) -> npt.NDArray[np.int64]:
        folders = [i.split("/")[0] for i in ids]
        return np.array([self.classnames.index(f) if f in self.classnames else int(f) for f in folders])

    def _pseudo(self, ids: list[str], n_labelers: int, rng: np.random.Generator) -> pa.Table:
        ids = [i for i in ids if i not in self.rejected]
        true = self._true(ids)
        own = np.stack([self._drawn(true, 0.3 + 0.1 * b, rng) for b in range(n_labelers)], axis=1)
        confidence = rng.beta(4, 2, (len(ids), n_labelers)).astype(np.float32)
        columns = [ids, own[:, 0], confidence.mean(axis=1), own.tolist(), confidence.tolist()]
        return pa.table(columns, schema=schema.PSEUDO_LABELS)

    def _predictions(self, pseudo: pa.Table, rng: np.random.Generator) -> pa.Table:
        ids = pseudo["image_id"].to_pylist()
        true = self._true(ids)
        members = np.stack([self._drawn(true, 0.2, rng) for _ in range(self.members)], axis=1)
        names = [self.classnames[i] for i in members[:, 0]]
        confidence = rng.beta(5, 2, len(ids)).astype(np.float32)
        return pa.table([ids, members[:, 0], names, confidence, members.tolist()], schema=schema.PREDICTIONS)

    def _history(self, rng: np.random.Generator) -> pa.Table:
        rows = [
            {"member": m, "epoch": e, "lr": 0.002, "loss": 2 / (e + 1) + 0.1 * rng.random()}
            for m in range(self.members)
            for e in range(self.epochs)
        ]
        return pa.Table.from_pylist(rows, schema=schema.HISTORY)

    def _scores(
        self, corpora: dict[str, Corpus], rules: dict[str, str], variant: str, steps: dict[str, Artifact]
    ) -> dict[str, Any]:
        names, labelers, rows = self.classnames, list(self.labelers(variant)), corpora.items()
        selection, pseudo, said = (
            steps["selection"].read_table("selection.parquet"),
            steps["pseudo"],
            steps["predictions"],
        )
        return {
            "labelers": labelers,
            "selection": score.score_selection(corpora["corpus"], selection, rules["corpus"], names),
            "zero_shot": {p: score.score_zero_shot(c, rules[p], pseudo, labelers, names) for p, c in rows},
            "predictions": {p: score.score_predictions(c, rules[p], said, names) for p, c in rows},
        }


def _shards(corpora: dict[str, Corpus]) -> Iterator[tuple[str, Shard, list[str]]]:
    """Each shard with its part and image ids, the corpus first."""
    for part, corpus in corpora.items():
        for shard in corpus.shards:
            yield part, shard, corpus.listing(shard)["image_id"].to_pylist()


def commit_predictions(predictions: Artifact, shard: Shard, rows: pa.Table) -> None:
    """Commit rows of `schema.PREDICTIONS` as the jobs do."""
    figures = figures_of(rows, shard.rows - len(shard.removed))
    part = predictions.write_part(shard.state, rows)
    predictions.commit(shard.state, parts=[part], rows=len(rows), figures=figures)
