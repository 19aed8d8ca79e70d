"""Checks a configuration against the world before work starts: storage, images, class names, models."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from upl_ray.artifacts import Store
from upl_ray.backbones import load_tokenizer, resolve
from upl_ray.classnames import check_classnames
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Config, ConfigError, Source, Train
from upl_ray.corpus import Corpus, list_corpus
from upl_ray.datasets.open import open_dataset
from upl_ray.held_out import ImageSet, check_apart
from upl_ray.metrics import UNLABELED, true_labels
from upl_ray.repair import repair
from upl_ray.section import Job
from upl_ray.sources import UNREACHABLE, first_line
from upl_ray.storage import absolute, read_text
from upl_ray.text_encoder import prompt_tokens
from upl_ray.zero_shot import fill_template

log = logging.getLogger(__name__)

RAY_COPIES = "/working_dir_files/_ray_pkg_"  # where a job that was submitted with --working-dir stands


@dataclass(frozen=True)
class Inputs:
    """A configuration that was checked against the world: what the steps work on."""

    config: Config
    store: Store
    classnames: tuple[str, ...]
    corpus: Corpus
    scored: Corpus | None
    specs: dict[str, ClipSpec]
    validation: Corpus | None = None  # for comparisons only

    @property
    def corpora(self) -> list[Corpus]:
        """The corpus, and the held-out images if there are any."""
        return [c for c in (self.corpus, self.scored, self.validation) if c]

    @property
    def target(self) -> ClipSpec:
        """The model that prompts are learned for."""
        return self.specs[self.config.target_backbone.label]

    def labelers(self, variant: str) -> list[ClipSpec]:
        """The labelers of a variant."""
        return [self.specs[b.label] for b in self.config.labelers(variant)]


def prepare(config: Config, validation: bool = False) -> Inputs:
    """Check everything that can be checked before work starts, and find out what the work is on.

    Args:
        config: the whole configuration.
        validation: True to list the validation images too, if there are any.

    Raises:
        ConfigError: storage cannot be written, no images, bad class names, a model that is not found or does not fit.
    """
    named = config.classnames and config.classnames != "folders"
    classnames = read_classnames(config.classnames) if named else None
    store = open_storage(config.storage_path, "config.json", config)
    config = open_dataset(config, store)
    if isinstance(config.classnames, tuple):  # a data set's are taken as published, though ImageNet's repeat
        classnames = classnames or config.classnames
    size, validates = config.compute.shard_size, validation and config.validation.uris
    corpus = list_images(store, config.corpus, size, "corpus")
    scored = list_images(store, config.scored, size, "scored") if config.scored.uris else None
    held_out = list_images(store, config.validation, size, "validation") if validates else None
    classnames = classnames or folder_names(corpus)
    listed = {"corpus": corpus, "scored": scored, "validation": held_out}
    sets = [ImageSet(f, c, getattr(config, f).roots) for f, c in listed.items() if c]
    for one in sets:
        check_labels(one.corpus, getattr(config, one.field).labels, one.field, classnames)
    for i in range(len(sets) - 1):
        check_apart(sets[i:])
    specs = {b.label: resolve(b, config.label.max_pixels) for b in config.backbones}
    check_context(specs[config.target_backbone.label], classnames, config.train, "lower train.n_ctx")
    for spec in specs.values():
        check_prompts(spec, fill_template(config.template, classnames))
    log.info("%-12s %d images, %d of them new, %d classes", "corpus", corpus.images, corpus.added, len(classnames))
    return Inputs(config, store, classnames, corpus, scored, specs, held_out)


def list_images(store: Store, source: Source, shard_size: int, field: str) -> Corpus:
    """The images of a field of the configuration.

    Raises:
        ConfigError: as `list_corpus`, with the field's name in front.
    """
    try:
        return list_corpus(store, source, shard_size)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from None


def open_storage(path: str, name: str, config: Job) -> Store:
    """The folder of all results, repaired where that is asked for.

    That it can be written is seen by writing the configuration into it.

    Raises:
        ConfigError: it cannot be written.
    """
    if "?" in path:
        told = path.partition("?")[0]
        raise ConfigError(f"storage_path {told!r} has options behind `?`; set them in the environment (AWS_...).")
    if RAY_COPIES in str(Path.cwd()) and "://" not in path and not path.startswith(("/", "~")):
        raise ConfigError(
            f"storage_path {path!r} lies in Ray's copy of the working directory ({Path.cwd()}), where no later run "
            f"finds it; give an address (s3://...) or an absolute path that all nodes reach."
        )
    try:
        store = Store(absolute(path))
        store.write_json(name, config.model_dump(mode="json"))
    except UNREACHABLE as error:
        raise ConfigError(
            f"storage_path {path!r} cannot be written ({first_line(error)}); check it and its access."
        ) from None
    if config.repair:
        repair(store)
    return store


def check_labels(corpus: Corpus, rule: str, field: str, classnames: tuple[str, ...]) -> None:
    """Refuse true labels of which none is a class name: nothing would be scored, as if none had been given."""
    if rule == "none":
        return
    first = None
    for shard in corpus.shards:
        given = [x for x in corpus.labels(shard).values() if x is not None]
        if (true_labels(given, classnames) != UNLABELED).any():
            return
        first = first or next(iter(given), None)
    told = "no image has one" if first is None else f"none of them is a class name; the first is {first!r}"
    raise ConfigError(
        f"{field}.labels is {rule!r} for {corpus.name}, but {told}, and the first class is {classnames[0]!r}. "
        f"Make them equal, or set {field}.labels to none."
    )


def check_context(spec: ClipSpec, classnames: tuple[str, ...], recipe: Train, remedy: str) -> None:
    """Refuse class names that do not fit the target beside the recipe's context; `remedy` ends the sentence."""
    prompt_tokens(load_tokenizer(spec.source), classnames, recipe.n_ctx, recipe.class_position, remedy)


def check_prompts(spec: ClipSpec, prompts: list[str]) -> None:
    """Refuse zero-shot prompts that fill the model's context: its tokenizer cuts longer ones without a word."""
    tokenizer = load_tokenizer(spec.source)
    full = tokenizer(prompts)[:, -1] != tokenizer(["a"])[0, -1]
    if full.any():
        prompt = prompts[int(full.int().argmax())]
        raise ConfigError(
            f"The prompt {prompt!r} does not fit the context of {spec.name}; shorten the name or template."
        )


def folder_names(corpus: Corpus) -> tuple[str, ...]:
    """Class names from the corpus' sub-folders, or from what else labels its images, sorted."""
    names = {x for shard in corpus.shards for i, x in corpus.labels(shard).items() if x and i not in shard.removed}
    return check_classnames(sorted(names))


def read_classnames(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """Class names from a list or a text file.

    Raises:
        ConfigError: the file cannot be read, or see `check_classnames`.
    """
    if isinstance(given, tuple):
        return check_classnames(list(given))
    try:
        text = read_text(given)
    except UNREACHABLE as error:
        raise ConfigError(
            f"classnames {given!r} cannot be read from {Path.cwd()} ({first_line(error)}); give a text file, a list or "
            f"`folders`."
        ) from None
    return check_classnames(text.rstrip("\n").split("\n"))
