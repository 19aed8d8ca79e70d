"""A finished run as its storage describes it: what `run.json` names, opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.config import ConfigError, JobError
from upl_ray.corpus import Corpus, Shard, read_corpus
from upl_ray.integrity import Damaged
from upl_ray.snapshot import read_snapshot

WORDS_VERSION = 1  # raise when the same classifier gives other words
TITLES = {"upl*": "UPL*", "upl": "UPL"}
SLUGS = {"upl*": "upl-star", "upl": "upl"}


@dataclass(frozen=True)
class Variant:
    """The artifacts of one variant."""

    name: str
    labelers: tuple[str, ...]  # in the order of the columns of its pseudo-labels
    pseudo: Artifact
    selection: Artifact
    views: Artifact
    members: Artifact
    classifier: Artifact
    predictions: Artifact

    @property
    def title(self) -> str:
        """The name as people write it."""
        return TITLES[self.name]

    @property
    def slug(self) -> str:
        """The name in file names and ids."""
        return SLUGS[self.name]

    @cached_property
    def done(self) -> set[str]:
        """States of the shards that have both pseudo-labels and predictions; listed once: listings cost."""
        return self.pseudo.committed() & self.predictions.committed()

    def shards(self, corpus: Corpus) -> tuple[Shard, ...]:
        """The shards of a corpus of the run.

        Raises:
            JobError: for some there are no pseudo-labels or predictions.
        """
        missing = [s for s in corpus.shards if s.state not in self.done]
        if missing:
            raise JobError(
                f"{len(missing)} of {len(corpus.shards)} shards of {corpus.name} have no pseudo-labels or no "
                f"predictions, {missing[0].state} for example: files were taken away since this run ended, or it was "
                f"made by an older version and the corpus was listed anew. Run the job again, which makes what is "
                f"missing."
            )
        return corpus.shards


@dataclass(frozen=True)
class FinishedRun:
    """Everything a report needs to know where things lie."""

    store: Store
    summary: dict[str, Any]  # run.json

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was made with."""
        return dict(self.summary["config"])

    @property
    def target(self) -> str:
        """Name of the backbone that prompts were learned for."""
        return str(self.summary["target"])

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The variants, the exported one first."""
        made: dict[str, dict[str, str]] = self.summary["artifacts"]["variants"]
        return tuple(
            Variant(
                name,
                tuple(self.summary["scores"][name]["labelers"]),
                **{step: _artifact(self.store, folder) for step, folder in made[name].items()},
            )
            for name in self.config["variants"]
        )

    @cached_property
    def classnames(self) -> tuple[str, ...]:
        """Names of the C classes, in the order of indices."""
        return tuple(manifest_of(self.variants[0].classifier)["classnames"])

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """The corpus, and the held-out images if there are any, as they were in the run: `corpus`, `scored`."""
        folders: dict[str, str] = self.summary["artifacts"]["corpora"]
        kept = {part: _artifact(self.store, folder) for part, folder in folders.items()}
        # A run of an older version names the corpus itself, which is as it was listed last.
        return {part: read_corpus(a) if a.step == "corpus" else read_snapshot(a) for part, a in kept.items()}

    @cached_property
    def rejected(self) -> Artifact:
        """The artifact whose `rejected.parquet` names the images that the run could not read."""
        kept = self.corpora["corpus"].artifact
        return self.variants[0].predictions if kept.step == "corpus" else kept

    def _source(self, part: str) -> dict[str, Any]:
        """What was read as `corpus` or `scored`; a data set's is not in the configuration."""
        return dict(self.summary.get("sources", self.config)[part])

    @property
    def addresses(self) -> str:
        """Where the corpus lies."""
        uri = self._source("corpus")["uri"]
        return uri if isinstance(uri, str) else ", ".join(uri)

    def label_rule(self, part: str) -> str:
        """Where true labels of a corpus come from; `none` if there are none."""
        return str(self._source(part)["labels"])


def open_run(uri: str) -> FinishedRun:
    """Open the storage of a finished run.

    Raises:
        ConfigError: there is no finished run, or one that was made before reports existed.
    """
    store = Store(uri)
    try:
        summary = store.read_sealed("run.json")
    except Damaged:
        summary = {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"No finished run lies in {uri!r} ({error}); name a run's storage_path.") from None
    if "artifacts" not in summary:
        raise ConfigError(
            f"{store.join('run.json')} is damaged, or was written by an older version; run the job again, which writes "
            f"it anew from what lies in storage."
        )
    return FinishedRun(store, summary)


def fields(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of a configuration's fields, as `train.lr`."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def word_artifact(classifier: Artifact) -> Artifact:
    """Where the nearest words of a classifier's context vectors lie."""
    identity = {"version": WORDS_VERSION, "classifier": classifier.fingerprint}
    return Artifact(classifier.store, "words", fingerprint(identity))


def manifest_of(artifact: Artifact) -> dict[str, Any]:
    """The manifest of an artifact that must be finished.

    Raises:
        FileNotFoundError: it is not there.
    """
    manifest = artifact.manifest()
    if manifest is None:
        raise FileNotFoundError(f"{artifact.uri} is not finished, but the run names it; run the job again.")
    return manifest


def _artifact(store: Store, folder: str) -> Artifact:
    step, _, digest = folder.rpartition("-")
    return Artifact(store, step, digest)
