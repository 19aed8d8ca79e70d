"""A finished run without models: real image files, listing, selection, scores and tables; only the labels are drawn.

For reports of any size, in benchmarks and tests; nothing in it needs Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from upl_ray.config.settings import Config
from upl_ray.corpus.datasets import open_dataset
from upl_ray.corpus.shards import Shard, keep_snapshot, list_corpus
from upl_ray.pipeline.predictions import publish, tally_facts
from upl_ray.pipeline.scores import (
    ScoreTask,
    Sources,
    read_scores,
    scores_step,
    selected_images,
    store_scores,
    tally_of,
)
from upl_ray.storage import schema
from upl_ray.storage.chain import Chain
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.upl.sampling import sampled
from upl_ray.upl.tally import Models
from upl_ray.upl.top_k import top_k

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
    sample: float = 0.5  # share of the images that prompts are learned on by refined labels [0-1]
    verdict: dict[str, Any] = field(default_factory=dict)  # of `run.json`
    absent: tuple[str, ...] = ()  # names of classes
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
        scored: Sources = {part: (c, sources[part].labels) for part, c in corpora.items()}
        made = {variant: self._variant(store, scored, variant) for variant in self.variants}
        for name in LABELERS:
            Step(store, f"features-{name}", DIGEST).finish(backbone={}, identity={})
        folders = {v: chain.folders() for v, chain in made.items()}
        scores = {v: read_scores(chain.scores) for v, chain in made.items()}
        first = made[self.variants[0]]
        store.write_json("config.json", config.model_dump(mode="json"))
        store.write_json(
            "run.json",
            {
                "status": "done",
                "seconds": 12.3,
                "storage": store.uri,
                "classifier": first.classifier.uri,
                "classifiers": {v: chain.classifier.uri for v, chain in made.items()},
                "predictions": first.predictions.uri,
                "target": "target",
                "images": corpus.images,
                "rejected": len(self.rejected),
                "rejected_by_reason": {r.partition(":")[0]: 1 for r in self.rejected.values()},
                "starved_classes": scores[self.variants[0]]["selection"]["starved"],
                "scores": scores,
                "report": store.join("report/index.html"),
                "sources": {p: {"uri": s.uri, "labels": s.labels} for p, s in sources.items()},
                "folders": {
                    "corpora": {part: step.folder for part, step in kept.items()},
                    "features": {name: f"features-{name}-{DIGEST}" for name in LABELERS},
                    "variants": folders,
                },
                "verdict": self.verdict,
                "absent_classes": list(self.absent),
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
        return ("target",) if variant == "upl" else LABELERS

    def _variant(self, store: Store, sources: Sources, variant: str) -> Chain:
        digest = f"{len(variant)}{DIGEST[1:]}"
        steps = ("pseudo_labels", "selection", "views", "members", "classifier", "predictions")
        made = {step: Step(store, step, digest) for step in steps}
        if variant == "refined":
            made["refinement"] = Step(store, "refinement", digest)
        chain = Chain(**made, scores=scores_step(made["predictions"], sources))
        rng = np.random.default_rng([self.seed, len(variant)])
        chosen = []
        models = Models(len(self.classnames), self.labelers(variant), "target", self.members)
        task = ScoreTask(chain, sources, models, self.classnames)
        for part, shard in task.shards():
            ids = sources[part][0].listing(shard)["image_id"].to_pylist()
            table = self._pseudo(ids, len(self.labelers(variant)), rng)
            pseudo = chain.pseudo_labels
            pseudo.commit(shard.state, parts=[pseudo.write_part(shard.state, table)], rows=len(table))
            commit_predictions(chain.predictions, shard, self._predictions(table, rng, variant))
            if part == "corpus":
                if variant == "refined":
                    table = table.take(sampled(table["image_id"].to_pylist(), self.sample))
                of = pa.array([shard.id] * len(table), pa.string())
                chosen.append(table.select(["image_id", "pseudo_label", "confidence"]).append_column("shard", of))
        selected = top_k(chosen, self.top_k if variant != "refined" else max(1, sum(map(len, chosen))))
        chain.selection.finish(files=chain.selection.write_file("selection.parquet", selected))
        chain.members.finish(files=chain.members.write_file("history.parquet", self._history(rng)))
        chain.classifier.finish(classnames=list(self.classnames), variant=variant, members=chain.members.folder)
        publish(chain.predictions, sources["corpus"][0], chain.classifier)
        for name in ("pseudo_labels", "views", "refinement"):
            if name in made:
                made[name].finish()
        of_shard = selected_images(chain.selection)
        tallies = ((part, *tally_of(task, part, s, of_shard.get(s.id, {}))) for part, s in task.shards())
        store_scores(task, tallies)
        return chain

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
        columns.append(rng.beta(1, 3, len(ids)).astype(np.float32))
        return pa.table(columns, schema=schema.PSEUDO_LABELS)

    def _predictions(self, pseudo: pa.Table, rng: np.random.Generator, variant: str) -> pa.Table:
        ids = pseudo["image_id"].to_pylist()
        true = self._true(ids)
        members = np.stack([self._drawn(true, 0.2, rng) for _ in range(self.members)], axis=1)
        names = [self.classnames[i] for i in members[:, 0]]
        confidence = rng.beta(5, 2, len(ids)).astype(np.float32)
        even = self._drawn(true, 0.1, rng) if variant == "refined" else members[:, 0]
        columns = [ids, members[:, 0], names, confidence, members.tolist(), even, pseudo["known"]]
        return pa.table(columns, schema=schema.PREDICTIONS)

    def _history(self, rng: np.random.Generator) -> pa.Table:
        rows = [
            {"member": m, "epoch": e, "lr": 0.002, "loss": 2 / (e + 1) + 0.1 * rng.random()}
            for m in range(self.members)
            for e in range(self.epochs)
        ]
        return pa.Table.from_pylist(rows, schema=schema.HISTORY)


def commit_predictions(predictions: Step, shard: Shard, rows: pa.Table) -> None:
    """Commit rows of `schema.PREDICTIONS` as the jobs do."""
    part = predictions.write_part(shard.state, rows)
    predictions.commit(shard.state, parts=[part], rows=len(rows), **tally_facts(shard, rows))
