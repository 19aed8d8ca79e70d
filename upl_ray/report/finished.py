"""A finished run: the steps, corpora and classes that its `run.json` names, opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from upl_ray.corpus.corrections import corrections_of
from upl_ray.corpus.shards import Corpus, Shard, read_snapshot
from upl_ray.errors import ConfigError, Damaged, JobError
from upl_ray.storage.chain import Chain, open_chain
from upl_ray.storage.step import Step, open_step
from upl_ray.storage.store import Store

TITLES = {"upl*": "UPL*", "upl": "UPL", "refined": "Refined"}
SLUGS = {"upl*": "upl-star", "upl": "upl", "refined": "refined"}


@dataclass(frozen=True)
class Variant:
    """One variant of the run."""

    name: str
    labelers: tuple[str, ...]  # in the order of the columns of its pseudo-labels
    chain: Chain

    @property
    def title(self) -> str:
        """The name on the page."""
        return TITLES[self.name]

    @property
    def slug(self) -> str:
        """The name in file names and ids."""
        return SLUGS[self.name]

    @property
    def refined(self) -> bool:
        """True if prompts were learned on a uniform sample with refined, soft labels; else on the top-K."""
        return self.name == "refined"

    @cached_property
    def done(self) -> set[str]:
        """States of the shards that have both pseudo-labels and predictions; listed once, as requests cost time."""
        return self.chain.pseudo_labels.committed() & self.chain.predictions.committed()

    def shards(self, corpus: Corpus) -> tuple[Shard, ...]:
        """The shards of a corpus of the run.

        Raises:
            JobError: for some there are no pseudo-labels or predictions.
        """
        missing = [s for s in corpus.shards if s.state not in self.done]
        if missing:
            raise JobError(
                f"{len(missing)} of {len(corpus.shards)} shards of {corpus.name} have no pseudo-labels or no "
                f"predictions, {missing[0].state} for example: files were removed since this run ended. Run the job "
                f"again, which makes the missing ones."
            )
        return corpus.shards


@dataclass(frozen=True)
class FinishedRun:
    """A run by its summary; steps, corpora and class names are opened when they are used."""

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
        made: dict[str, dict[str, str]] = self.summary["folders"]["variants"]
        return tuple(
            Variant(
                name,
                tuple(self.summary["scores"][name]["labelers"]),
                open_chain(self.store, made[name]),
            )
            for name in self.config["variants"]
        )

    @cached_property
    def classnames(self) -> tuple[str, ...]:
        """Names of the C classes in the order of indices."""
        return tuple(self.variants[0].chain.classifier.manifest()["classnames"])

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """The corpus, and the held-out images if there are any, as they were in the run: `corpus`, `scored`."""
        folders: dict[str, str] = self.summary["folders"]["corpora"]
        return {part: read_snapshot(open_step(self.store, folder)) for part, folder in folders.items()}

    @cached_property
    def corrections(self) -> dict[str, int]:
        """Image id -> class, or NONE, of the images that a person had corrected before the run."""
        folder = self.summary["folders"].get("corrections")
        by_shard = corrections_of(open_step(self.store, folder) if folder else None)
        return {image_id: label for of in by_shard.values() for image_id, label in of.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that differ where two runs do: results, sources and recipe; no times, addresses or compute."""
        shown = {n: self.summary[n] for n in ("target", "scores", "folders", "sources", "rejected_by_reason")}
        shown |= {n: self.summary.get(n) for n in ("verdict", "absent_classes")}  # older runs have neither
        config = {n: value for n, value in self.config.items() if n not in ("storage_path", "compute", "tracking")}
        return {"run": shown, "config": config, "corpora": {p: c.labels_digest for p, c in self.corpora.items()}}

    @property
    def rejected(self) -> Step:
        """The snapshot whose `rejected.parquet` names the images that the run could not read."""
        return self.corpora["corpus"].step

    def _source(self, part: str) -> dict[str, Any]:
        """Address and labels of `corpus` or `scored`; those of a data set are not in the configuration."""
        return dict(self.summary.get("sources", self.config)[part])

    @property
    def addresses(self) -> str:
        """Addresses of the corpus."""
        uri = self._source("corpus")["uri"]
        return uri if isinstance(uri, str) else ", ".join(uri)

    def label_rule(self, part: str) -> str:
        """The source of true labels of a part; `none` if there are none."""
        return str(self._source(part)["labels"])


def open_run(uri: str) -> FinishedRun:
    """Open the storage of a finished run.

    Raises:
        ConfigError: there is no finished run, or one of a version without reports.
    """
    store = Store(uri)
    try:
        summary = store.read_json("run.json")
    except Damaged:
        summary = {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"No finished run lies in {uri!r} ({error}); name a run's storage_path.") from None
    if "folders" not in summary:
        raise ConfigError(
            f"{store.join('run.json')} is damaged, or was written by an older version; run the job again, which writes "
            f"a new one from storage."
        )
    return FinishedRun(store, summary)


def fields(section: dict[str, Any], prefix: str = "", separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Names and values of the leaves of nested mappings: of a configuration's fields, as `train.lr`."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from fields(value, f"{prefix}{name}{separator}", separator)
        else:
            yield f"{prefix}{name}", value
