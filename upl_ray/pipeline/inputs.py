"""Checks a configuration against the world before work starts: storage, images, class names, models."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from open_clip import IMAGENET_CLASSNAMES

from upl_ray.cluster.connect import RayCluster
from upl_ray.cluster.preflight import preflight
from upl_ray.config.classnames import behind_numbers, check_classnames, clean_classname, has_unseen
from upl_ray.config.settings import Compute, Config, Section, Source, Train
from upl_ray.corpus.archive_index import Spread
from upl_ray.corpus.corrections import find_corrections, read_corrections
from upl_ray.corpus.datasets import open_dataset
from upl_ray.corpus.overlap import ImageSet, check_apart, check_once
from upl_ray.corpus.shards import Corpus, list_corpus
from upl_ray.corpus.true_labels import check_labels, folder_names
from upl_ray.errors import ConfigError, Damaged, first_line, quoted
from upl_ray.pipeline.shardwise import map_items
from upl_ray.storage.step import Step
from upl_ray.storage.store import UNREACHABLE, Store, absolute, read_ahead, read_text
from upl_ray.upl.backbones import find_equal, load_tokenizer, resolve_backbone, tokenize, vocabulary_sha256
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.images import EXTENSIONS
from upl_ray.upl.prompt_encoder import prompt_tokens
from upl_ray.upl.zero_shot import fill_template

log = logging.getLogger(__name__)

# What no line of names holds: tabs and other ends of lines, signs for bytes that could not be read, lines of a tree,
# addresses, HTML's entities, conflicts of git, and quotes around the whole.
STRANGE = re.compile(
    r"[\x00-\x1f\x7f\x85\u2028\u2029\ufffd\u251c\u2514\u2502]|://|&#?\w+;|^(<{7}|={7}|>{7})( |$)|"
    r"""^\s*("|\u201c|\u201e).*["\u201c\u201d],?\s*$"""
)
COLUMN = re.compile(r"\s*(class(es)?|class[ _-]?(name|label)s?|labels?|names?|categor(y|ies))\s*:?\s*", re.IGNORECASE)
MARKS = {  # of whole lines
    r"\s*[-*+•]\s.*": "begins with a dash or a star",
    r"""\s*(["']).*\1\s*,?\s*""": "stands in quotes",
    r".*\S[/\\]\s*": "ends with a slash, as a folder",
    r"\s*[/\\].*": "begins with a slash, as a path",
    rf".*\S(?i:{'|'.join(map(re.escape, EXTENSIONS))})\s*": "is the name of an image",
    r"\s*n\d{8}\s*": "is a number of WordNet",
    r"\s*<.*>\s*": "stands in brackets",
    r"\s*\d+\s*[.,;:)]\s*\D.*|\s{2,}\d+ .*": "begins with a number",
    r".*\S\s*[,;:=]\s*\d+\s*": "ends with a number",
    r".*[;|=\\].*": "holds a mark of tables or paths",
}
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".parquet", ".xlsx")
SHOWN = 5  # names in a log line
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
    negatives: Mapping[str, list[str]] = field(default_factory=dict)  # backbone -> prompts of words that compete
    corrections: Step | None = None  # labels that a person gave to images of the corpus
    unknown_labels: Mapping[str, Counter[str]] = field(default_factory=dict)  # field -> labels, see `check_labels`

    @property
    def corpora_by_field(self) -> dict[str, Corpus]:
        """The corpus, and the held-out images if there are any, by the names of their fields."""
        listed = {"corpus": self.corpus, "scored": self.scored, "validation": self.validation}
        return {field: corpus for field, corpus in listed.items() if corpus}

    @property
    def corpora(self) -> list[Corpus]:
        """The same without the names."""
        return list(self.corpora_by_field.values())

    @property
    def target(self) -> ClipSpec:
        """The model that prompts are learned for."""
        return self.specs[self.config.target_backbone.label]

    def labelers(self, variant: str) -> list[ClipSpec]:
        """The labelers of a variant."""
        return [self.specs[b.label] for b in self.config.labelers(variant)]

    def referees(self, variant: str) -> list[ClipSpec]:
        """The backbones whose labels did not flow into a variant."""
        return [self.specs[b.label] for b in self.config.referees(variant)]


def prepare(config: Config, cluster: RayCluster | None = None, validation: bool = False) -> Inputs:
    """Check everything that can be checked before work starts, and find out what the work is on.

    Args:
        config: the whole configuration.
        cluster: where new archives are indexed, and whose nodes are checked before work; None: here.
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
    lists = partial(list_images, store, compute=config.compute, cluster=cluster)
    corpus = lists(config.corpus, field="corpus")
    scored = lists(config.scored, field="scored") if config.scored.uris else None
    held_out = lists(config.validation, field="validation") if validation and config.validation.uris else None
    classnames = classnames or folder_names(corpus, config.corpus.labels)
    listed = {"corpus": corpus, "scored": scored, "validation": held_out}
    sets = [ImageSet(f, c, getattr(config, f).roots) for f, c in listed.items() if c]
    unknown = {s.field: check_labels(s.corpus, getattr(config, s.field).labels, s.field, classnames) for s in sets}
    for name, labels in unknown.items():
        if strangers := [label for label in labels if label]:
            log.warning(
                "%-12s %d images are not scored: their labels are no class, such as %s",
                *(name, labels.total() - labels[""], _first_names(strangers)),
            )
        if labels[""]:
            log.warning("%-12s %d images are not scored: they have no label", name, labels[""])
    if scored and config.scored.labels == "none":
        log.warning("%-12s has no labels, so nothing is scored; say where they are in scored.labels", "scored")
    check_apart(sets)
    found = {b.label: resolve_backbone(b, config.label.max_pixels) for b in config.backbones}
    specs = {name: replace(s, vocabulary_sha256=vocabulary_sha256(s.source)) for name, s in found.items()}
    if config.label.decode == "fast":
        specs = decoded_fast(specs)
    _check_names(config, specs, classnames)
    words = read_negatives(config.label.negatives)
    if config.label.min_known and not words:
        raise ConfigError(
            f"label.min_known is {config.label.min_known}, but label.negatives {config.label.negatives!r} holds no "
            f"word that competes; name some."
        )
    negatives = {s.name: negative_prompts(s, config.template, words) for s in specs.values()} if words else {}
    log.info("%-12s %d images, %d of them new", "corpus", corpus.images, corpus.added)
    log.info("%-12s %d: %s", "classes", len(classnames), _first_names(classnames))
    corrected = read_corrections(config.label.correction_files, classnames)
    corrections = find_corrections(store, corpus, corrected)
    if config.label.correction_files:
        log.info("%-12s %d images", "corrections", len(corrected))
    inputs = Inputs(config, store, classnames, corpus, scored, specs, held_out, negatives, corrections, unknown)
    if cluster:
        cluster.check_nodes(lambda: preflight(store, inputs.corpora, list(specs.values()), config.compute))
    return inputs


def _first_names(names: Sequence[str]) -> str:
    """Names for a log line."""
    return ", ".join(map(quoted, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def _check_names(config: Config, specs: dict[str, ClipSpec], classnames: tuple[str, ...]) -> None:
    """Refuse class names that a model cannot read or tell apart, with the context or in the template; or too few."""
    if config.compute.workers_per_trial > len(classnames):
        raise ConfigError(
            f"compute.workers_per_trial is {config.compute.workers_per_trial}, but the workers of a trial share its "
            f"classes, and there are {len(classnames)}; lower it."
        )
    check_context(specs[config.target_backbone.label], classnames, config.train, "lower train.n_ctx")
    for spec in specs.values():
        check_prompts(spec, fill_template(config.template, classnames))


def decoded_fast(specs: dict[str, ClipSpec]) -> dict[str, ClipSpec]:
    """The backbones with the scale that photographs are decoded at: twice the largest crop of all."""
    draft = 2 * max(max(s.geometry.height, s.geometry.width) for s in specs.values())
    side = 2 * draft
    log.info(
        "%-12s fast: JPEG files of %d x %d pixels and more are scaled while they are decoded", "decode", side, side
    )
    return {name: replace(s, geometry=replace(s.geometry, draft=draft)) for name, s in specs.items()}


def list_images(store: Store, source: Source, compute: Compute, field: str, cluster: RayCluster | None) -> Corpus:
    """The images of a field of the configuration; new archives are indexed on the cluster, if there is one.

    Raises:
        ConfigError: as `list_corpus`, with the field's name in front.
        JobError: a node cannot read an archive.
    """
    try:
        corpus = list_corpus(store, source, compute.shard_size, _tasks_of(store, cluster) if cluster else read_ahead)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from None
    check_once(ImageSet(field, corpus, source.roots))
    if corpus.left_out.counts:
        log.info("%-12s left out: %s", field, corpus.left_out)
    return corpus


def _tasks_of(store: Store, cluster: RayCluster) -> Spread:
    """Applies a function to each archive in a task."""

    def spread(archives: list[str], function: Callable[[str], str]) -> Iterator[str]:
        compute = cluster.compute
        cluster.check_nodes(lambda: preflight(store, [], [], compute))
        cluster.start("archives")
        with cluster.watched(last=False):
            yield from map_items("archives", archives, function, compute)

    return spread


def open_storage(path: str, name: str, config: Section) -> Store:
    """The folder of all results.

    That it can be written is seen by writing the configuration into it.

    Raises:
        ConfigError: it cannot be written, or holds another program's file of that name.
    """
    if "?" in path:
        address = path.partition("?")[0]
        raise ConfigError(f"storage_path {address!r} has options behind `?`; set them in the environment (AWS_...).")
    if RAY_COPIES in str(Path.cwd()) and "://" not in path and not path.startswith(("/", "~")):
        raise ConfigError(
            f"storage_path {path!r} lies in Ray's copy of the working directory ({Path.cwd()}), where no later run "
            f"finds it; give an address (s3://...) or an absolute path that all nodes reach."
        )
    try:
        store = Store(absolute(path))
        _check_own(store, name, path)
        store.write_json(name, config.model_dump(mode="json"))
    except UNREACHABLE as error:
        raise ConfigError(
            f"storage_path {path!r} cannot be written ({first_line(error)}); check it and its access."
        ) from None
    return store


def _check_own(store: Store, name: str, path: str) -> None:
    """Refuse a folder whose file of this name is somebody's own, such as a model's `config.json`."""
    try:
        found = store.read_json(name)
    except (FileNotFoundError, Damaged):
        return
    except OSError as error:
        if "ACCESS_DENIED" in str(error):  # S3 gives the reason only where one writes
            return
        raise
    if "storage_path" not in found:
        raise ConfigError(
            f"storage_path {path!r} holds a {name} that no run has written; give storage_path a folder that holds "
            f"nothing else."
        )


def check_context(spec: ClipSpec, classnames: tuple[str, ...], recipe: Train, remedy: str) -> None:
    """Refuse class names that do not fit the target beside the recipe's context; `remedy` ends the sentence."""
    prompt_tokens(load_tokenizer(spec.source), classnames, recipe.n_ctx, remedy)


def check_prompts(spec: ClipSpec, prompts: list[str]) -> None:
    """Refuse zero-shot prompts that the model's tokenizer cuts, makes equal, or gives tokens that the model lacks."""
    ids, cut = tokenize(load_tokenizer(spec.source), prompts)
    if cut.any():
        prompt = prompts[int(cut.int().argmax())]
        raise ConfigError(
            f"The prompt {quoted(prompt)} does not fit the context of {spec.name}; shorten the name or template."
        )
    if ids.max() >= spec.vocabulary:
        raise ConfigError(
            f"The tokenizer of {spec.name} gives token {ids.max()}, but the model knows {spec.vocabulary}; name the "
            f"model's own vocabulary in its open_clip_config.json (text_cfg.tokenizer_kwargs.bpe_path)."
        )
    if equal := find_equal(prompts, ids):
        raise ConfigError(
            f"The prompts {equal[0]!r} and {equal[1]!r} are the same tokens to {spec.name}; rename one of the classes."
        )


def read_classnames(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """Class names from a list or a text file.

    Raises:
        ConfigError: the file cannot be read, or see `check_classnames`.
    """
    return check_classnames(read_names("classnames", given, "a list or `folders`"))


def read_negatives(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """The words that compete with the classes, each once: ImageNet's, or those of a list or a text file.

    Raises:
        ConfigError: the file cannot be read, or its lines are more than names.
    """
    if not given:
        return ()
    if given == "imagenet":
        return tuple(dict.fromkeys(IMAGENET_CLASSNAMES))  # two of them name two classes
    names = read_names("label.negatives", given, "a list or `imagenet`")
    words = tuple(dict.fromkeys(clean_classname(name) for name in names if name.strip()))
    if unseen := next(filter(has_unseen, words), None):
        raise ConfigError(f"label.negatives: {unseen!a} holds a character that cannot be seen; type the word again.")
    return words


def negative_prompts(spec: ClipSpec, template: str, words: tuple[str, ...]) -> list[str]:
    """The prompts of those words that fit the context of a model.

    Raises:
        ConfigError: none of them fits.
    """
    prompts = fill_template(template, words)
    ids, cut = tokenize(load_tokenizer(spec.source), prompts)
    fitting = ~cut & (ids.amax(dim=1) < spec.vocabulary)
    if not fitting.any():
        raise ConfigError(
            f"None of the {len(words)} words of label.negatives fits the context of {spec.name} with the template "
            f"{quoted(template)}, {quoted(words[0])} for example; give shorter ones, or an empty list."
        )
    return [prompt for prompt, fits in zip(prompts, fitting.tolist(), strict=True) if fits]


def read_names(field: str, given: str | tuple[str, ...], others: str) -> list[str]:
    """Names from a list, as they are, or the lines of a text file; `others` are the forms that are no file.

    Raises:
        ConfigError: the file cannot be read, or its lines hold marks of a table or of another format.
    """
    if isinstance(given, tuple):
        return list(given)
    lines, remedy = read_lines(field, given, others), "write names alone, one a line, or a list instead of the file"
    if note := next((line for line in lines if re.match(r"#\s", line)), None):
        raise ConfigError(f"{field} {given!r} holds {quoted(note.strip())}, which would be a name; remove the line.")
    if mark := _mark_of(lines):
        shown = quoted(max(lines[:3], key=len))
        raise ConfigError(f"Every name of {field} {given!r} {mark}, which a prompt would read, too: {shown}; {remedy}.")
    if strange := next(filter(STRANGE.search, lines), None):
        raise ConfigError(f"{field} {given!r} holds {quoted(strange)}, which is no plain name; {remedy}.")
    if len(lines) > 2 and COLUMN.fullmatch(lines[0]):
        raise ConfigError(
            f"{field} {given!r} begins with {quoted(lines[0])}, as a table; remove the line, or give a list."
        )
    return lines


def read_lines(field: str, given: str, others: str) -> list[str]:
    """The lines of a text file; see `read_names`."""
    if given.lower().endswith(TABLES):
        raise ConfigError(f"{field} {given!r} is no plain text; write one name a line into a .txt file, or a list.")
    try:
        text = read_text(given).rstrip("\r\n")
    except UNREACHABLE as error:
        raise ConfigError(
            f"{field} {given!r} cannot be read from {Path.cwd()} ({first_line(error)}); give a text file in UTF-8, "
            f"{others}."
        ) from None
    if "\r" in text and "\n" not in text:
        raise ConfigError(f"The lines of {field} {given!r} end at carriage returns; save it with line feeds.")
    return [line.rstrip("\r") for line in text.split("\n")]


def _mark_of(lines: list[str]) -> str:
    """What all names hold if they are no plain list, but YAML, JSON, a table or paths; empty: nothing."""
    if len(lines) == 1:
        return "holds several, parted by commas" if "," in lines[0] else ""
    if lines[0].strip() in ("[", "{"):
        return "stands in brackets"
    for mark, words in MARKS.items():
        if all(re.fullmatch(mark, line) for line in lines):
            return words
    if all(line.rstrip().endswith(",") for line in lines[:-1]):
        return "ends with a comma"
    for names in (lines, lines[1:] if re.search("[,;]", lines[0]) else []):  # that line may name columns
        turned = [re.sub(r"\s*(.*\S)\s*[\s:,;=]\s*(\d+)\s*", r"\2 \1", line) for line in names]
        if len(names) > 1 and (behind_numbers(names) or (turned != names and behind_numbers(turned))):
            return "begins with a number" if behind_numbers(names) else "ends with a number"
    if len({line.strip().partition("/")[0] for line in lines}) == 1 and all(
        re.search(r"\S/\S", line) for line in lines
    ):
        return "holds a slash, as a path"
    return "is parted by a comma" if all(re.fullmatch(r"[^,]*(\D,\S|\S,[^\d\s])[^,]*", line) for line in lines) else ""
