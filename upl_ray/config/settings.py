"""All settings of all jobs, in the order in which a run uses them: typed, frozen, and checked when they are read.

The fields' descriptions are the reference: `--help` and `docs/configuration.md` are made of them. Defaults are the
published recipe (paper: arXiv 2204.03649, sections 4.1 and 4.2) unless a description names another source.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from upl_ray.config.classnames import has_unseen, in_typographic_quotes
from upl_ray.config.redact import find_flaws
from upl_ray.errors import ConfigError, quoted

T = TypeVar("T")


# Pydantic's words -> those for what stands in a YAML file.
YAML_WORDS = {
    r"^Value error, ": "",
    r"Input should be": "it should be",
    r"a valid string$": "text",
    r"a valid tuple$": "a list",
    r"a valid dictionary( or instance of \w+)?$": "`field: value` pairs",
}
ALTERNATIVE = re.compile(r"str|\w+\[.*\]")  # how pydantic names the types that it tries for a field of several


def describe_validation_error(error: ValidationError) -> str:
    """One line for every field that pydantic refused: the field, the value, the remedy."""
    lines: dict[str, str] = {}  # field -> what it should be
    values: dict[str, str] = {}
    for e in error.errors():
        field = ".".join(str(p) for p in e["loc"] if p != "" and not ALTERNATIVE.fullmatch(str(p)))
        nested = e.get("ctx", {}).get("error")
        if isinstance(nested, ConfigError):  # of a section within this one
            lines |= {f"{field}.{line}" if field else line: "" for line in str(nested).splitlines()}
            continue
        message = e["msg"]
        for theirs, ours in YAML_WORDS.items():
            message = re.sub(theirs, ours, message)
        if e["type"] == "extra_forbidden":
            message = "there is no such field; `--help` lists all fields"
        elif e["type"] == "missing":
            message = "this field is required"
        elif isinstance(e["input"], str | int | float | bool):
            values[field] = f"; it is {quoted(e['input'])}"
        message = message.rstrip(".")
        lines[field] = f"{lines[field]} or {message.removeprefix('it should be ')}" if field in lines else message
    sentences = {
        field: f"{text}{values.get(field, '')}." if text else ""
        for field, text in lines.items()
        if not any(other.startswith(f"{field}.") for other in lines)  # of a list, whose items say more
    }
    return "\n".join(": ".join(filter(None, pair)) for pair in sentences.items())


def _is_of_numbers(kind: Any) -> bool:
    """Whether a type is a number's, or of numbers."""
    return kind in (int, float) or any(map(_is_of_numbers, get_args(kind)))


class Section(BaseModel):
    """Base of every part of the settings: frozen; unknown fields and text with secrets are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _reject_secrets(cls, data: Any) -> Any:
        found = next(find_flaws(data), None)
        if found:  # refused for the whole section: for a field, pydantic would repeat the value
            raise ValueError(" ".join(found))
        return data

    @field_validator("*", mode="before")
    @classmethod
    def _check_numbers(cls, value: Any, about: ValidationInfo) -> Any:
        kind = cls.model_fields[about.field_name or ""].annotation
        given = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
        if not _is_of_numbers(kind):
            return value
        if any(isinstance(v, bool) for v in given):  # pydantic would take it for 1 or 0
            truth = next(v for v in given if isinstance(v, bool))
            raise ValueError(f"it should be a number; it is {truth}, as YAML reads yes, no, on and off")
        if any(isinstance(v, int) and abs(v) >= 2**63 for v in given):
            raise ValueError("it should be a number of 64 bits")
        return value

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(describe_validation_error(error)) from None


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse a list that names something twice: each item is a row of a table."""
    doubled = next((v for v in values if values.count(v) > 1), None)
    if doubled is not None:
        raise ValueError(f"it names {doubled!r} twice; once is enough")
    return values


def checked_path(value: str) -> str:
    """Refuse a folder without a name, or with that of a variable: results would lie where nobody looks for them."""
    if not value.strip():
        raise ValueError("it is empty; name a folder")
    if re.search(r"\$[({]|\$[A-Za-z_]\w+|(^|/)%[A-Za-z_]\w{2,}%|\{\{", value):
        raise ValueError("variables are not filled in here; write the path out")
    return value


def not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse an empty list where nothing would be left to do."""
    if not values:
        raise ValueError("it is empty; name one")
    return values


def classnames_from_yaml(value: Any) -> Any:
    """Numbers in a list of class names become text again; what YAML has read as true, false or null cannot."""
    if isinstance(value, dict):
        raise ValueError("it is a mapping; give a list of names, a text file or `folders`")
    if not isinstance(value, list | tuple):
        return value
    for item in value:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise ValueError(f"the class name {item!r} is no text; put it in quotes")
    return tuple(str(item) for item in value)


class Source(Section):
    """Where images lie."""

    uri: str | tuple[str, ...] = Field(
        "",
        description="Folder or prefix of images (nested), of tar or Parquet archives of them, one such file, a pattern "
        "(`s3://bucket/shards/*.tar`; `**` crosses folders), or a manifest that names images (txt, csv, jsonl); "
        "`demo:digits/...`. A list: all of them.",
    )
    labels: Literal["none", "folders", "column"] = Field(
        "none",
        description="True labels, used to score and for nothing else: none; folders: the first sub-folder's name; "
        "column: `label` of a manifest or Parquet file, `.cls` or `.json` in tar archives.",
    )
    roots: tuple[str, ...] = Field(
        (),
        description="Folders and prefixes that a manifest's absolute addresses may point into, beside its own folder.",
    )

    suffix: str = Field(
        "",
        description="Images of tar archives are those members whose names go on with this behind the first dot: `jpg`, "
        "or `left.png`; empty: all images.",
    )

    @property
    def uris(self) -> tuple[str, ...]:
        """The addresses; empty if there is none."""
        return (self.uri,) * bool(self.uri) if isinstance(self.uri, str) else self.uri


DatasetName = Literal[
    "",
    "imagenet",
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "oxford_flowers",
    "oxford_pets",
    "sun397",
    "stanford_cars",
    "ucf101",
]


class Dataset(Section):
    """A data set of the paper, in CoOp's folder layout; it fills in corpus, validation, scored and class names."""

    name: DatasetName = Field("", description="CoOp's name of the data set; empty: `corpus` and `classnames` are used.")
    root: str = Field("data", description="Folder or prefix of all data sets: `<root>/caltech-101/...`.")


class Backbone(Section):
    """One frozen CLIP-like model, loaded by open_clip."""

    model: str = Field(
        description="open_clip model name (`RN50`, `ViT-B-16`), `hf-hub:org/repo`, `local-dir:/folder`, or `demo:NAME`."
    )
    pretrained: str | None = Field(None, description="Pretrained tag (`openai`, `laion2b_s34b_b79k`) or weights file.")
    name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Short unique name in files and tables; empty: made from model and pretrained.",
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="Arithmetic of the frozen image encoder.")
    compile: bool = Field(
        False,
        description="Compile the image encoder with torch.compile where features are made: a longer start, "
        "faster on GPUs. It needs a C++ compiler there, and rounds otherwise: part of the features' identity.",
    )
    quick_gelu: bool | None = Field(None, description="Force QuickGELU on or off; None follows the pretrained tag.")

    @property
    def label(self) -> str:
        """The name, or one made from model and pretrained: `RN50-openai`."""
        if self.name:
            return self.name
        text = self.model.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
        if self.pretrained:
            text += f"-{Path(self.pretrained).stem}"
        return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")


# The paper's eight labelers (section 4.1); its target model is RN50.
UPL_STAR = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14")


def expand_backbones(value: Any) -> Any:
    """`upl-star` -> the paper's eight; `MODEL` or `MODEL/PRETRAINED` -> a Backbone."""
    if value == "upl-star":
        value = [f"{m}/openai" for m in UPL_STAR]
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError("it should be `upl-star` or a list of models such as [RN50/openai, ViT-B-16/openai]")
    expanded: list[Any] = []
    for item in value:
        if isinstance(item, dict | Backbone):
            expanded.append(item)
        elif not isinstance(item, str) or not item.strip():
            raise ValueError(f"{item!r} is no model; write for example RN50/openai, or fields under `model:`")
        elif item == "upl-star":
            expanded += expand_backbones(item)
        elif ":" in item:  # hf-hub:org/repo, local-dir:/a/b, demo:name carry no tag
            expanded.append(Backbone(model=item))
        else:
            model, _, pretrained = item.partition("/")
            expanded.append(Backbone(model=model, pretrained=pretrained or None))
    return tuple(expanded)


Backbones = Annotated[tuple[Backbone, ...], BeforeValidator(expand_backbones)]


class Label(Section):
    """Pseudo-labels (paper, section 3.2)."""

    top_k: int = Field(16, ge=1, description="Most confident images kept for each class [images]; paper: 16.")
    corrections: str | tuple[str, ...] = Field(
        (),
        description="Labels that a person gave to images of the corpus: a CSV, JSON-lines or Parquet file with the "
        "columns image_id and label (empty: none of the classes), or a list of such files. The report writes them.",
    )
    negatives: Annotated[str | tuple[str, ...], BeforeValidator(classnames_from_yaml)] = Field(
        "imagenet",
        description="Other words that compete with the classes; the share of probability that stays on the classes is "
        "the column `known`. `imagenet`: open_clip's names; a text file with one a line; or a list. Empty: no column.",
    )
    min_known: float = Field(
        0.0, ge=0, le=1, description="Images whose `known` is below are selected for no class [0-1]; 0: off."
    )
    max_rejected: float = Field(0.01, ge=0, le=1, description="Share of unreadable images that stops the job [0-1].")
    max_pixels: int = Field(178_956_970, ge=1, le=178_956_970, description="Larger images are rejected [pixels].")
    decode: Literal["exact", "fast"] = Field(
        "exact",
        description="exact: images are decoded as open_clip does; fast: large JPEG photographs at a half, quarter or "
        "eighth of their size, as long as that is at least twice the largest crop of all backbones.",
    )
    referee: str = Field(
        "",
        description="Name of a backbone that labels nothing and judges instead whether a classifier is better than "
        "the template; empty: every backbone labels.",
    )

    @property
    def correction_files(self) -> tuple[str, ...]:
        """The files of corrections; empty if there is none."""
        return (self.corrections,) * bool(self.corrections) if isinstance(self.corrections, str) else self.corrections


class Refine(Section):
    """Refined labels (ours): fused labels, corrected by the corpus' own features; how-to in `docs/method.md`."""

    beta: float = Field(5.0, gt=0, description="Weight of the features against the fused zero-shot probabilities.")
    kappa: float = Field(8.0, gt=0, description="Weight of a class' 8 most confident images in its mean [images].")
    sweeps: int = Field(10, ge=1, description="Passes over the sample that the mixture is fitted in [count].")
    sample_per_class: int = Field(
        1000, ge=1, description="Images that the mixture is fitted on, for each class on average [images]."
    )
    train_per_class: int = Field(
        64, ge=1, description="Images that prompts are learned on, for each class on average [images]."
    )
    targets: Literal["soft", "hard"] = Field(
        "soft", description="What prompts learn: refined probabilities, or only the most probable class."
    )
    adjust: bool = Field(
        True, description="Learn beside the class shares of the corpus (logit adjustment) instead of learning them too."
    )


class Views(Section):
    """The view bank: augmented views of the selected images, encoded once for all members (paper, section 4.1)."""

    count: int = Field(
        50,
        ge=0,
        description="Views of each selected image [count]; 50 is one for each epoch of the paper; 0: centre crop.",
    )
    crop_scale: tuple[float, float] = Field(
        (0.08, 1.0), description="Share of the image's area that a random resized crop covers [0-1]; paper: 0.08 1."
    )
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip [0-1]; paper: 0.5.")
    seed: int = Field(0, ge=0, description="Seed of crops and flips.")

    @field_validator("crop_scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("crop_scale needs 0 < smallest <= largest <= 1, for example [0.08, 1]")
        return value


class Train(Section):
    """Prompt learning (paper, section 4.1; the schedule as its authors' logs show it)."""

    n_ctx: int = Field(16, ge=1, description="Context vectors M, shared by all classes [tokens]; paper: 16.")
    members: int = Field(16, ge=1, description="Independently initialised prompts S [count]; paper: 16.")
    epochs: int = Field(50, ge=1, description="Passes over the pseudo-labeled images [epochs]; paper: 50.")
    batch_size: int = Field(32, ge=1, description="Images of one step [images]; paper: 32.")
    lr: float = Field(0.002, gt=0, description="Peak learning rate of SGD; paper: 0.002.")
    warmup_lr: float = Field(1e-5, gt=0, description="Constant learning rate of epoch 0; CoOp: 1e-5.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD; CoOp: 0.9.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay of SGD; CoOp: 5e-4.")
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial context vectors; CoOp: 0.02.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Arithmetic of the frozen text tower while training; context and optimiser stay fp32."
    )
    ensemble: Literal["probabilities", "logits"] = Field(
        "probabilities",
        description="Average over members: of probabilities, as in the paper, or of logits, as in its code.",
    )
    seed: int = Field(0, ge=0, description="Seed of initialisations, order of samples and order of views.")
    checkpoint_every: int = Field(10, ge=1, description="Epochs between two checkpoints of a member [epochs]; ours.")


class PoolOptions(Section):
    """The actors of one backbone: what each takes, and on which nodes."""

    gpus: float | None = Field(None, ge=0, le=1, description="GPUs of one actor [0-1]; None: planned; 0: CPU.")
    accelerator_type: str | None = Field(None, description="Only on nodes with this accelerator, in Ray's words: `T4`.")
    label_selector: dict[str, str] = Field({}, description="Only on nodes with these labels, in Ray's syntax.")
    max_actors: int | None = Field(None, ge=1, description="Upper bound on actors; None: `compute.max_actors`.")


class Compute(Section):
    """How the work is spread; no part of any fingerprint, since nothing here changes a result beyond rounding."""

    shard_size: int = Field(4096, ge=1, description="Images of a new shard, the unit of commit and resume [images].")
    chunk_size: int = Field(64, ge=1, description="Images that one model call encodes together [images].")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models compute; auto: on GPUs that actors hold; cpu: for GPUs only declared to Ray."
    )
    gpus_per_backbone: float | None = Field(
        None, ge=0, le=1, description="GPUs of one actor [0-1]; None: planned; 0: CPU. For one: `compute.pools`."
    )
    backbones_per_gpu: int = Field(8, ge=1, description="Most backbone actors that share one GPU [actors].")
    gpu_memory: float | None = Field(None, gt=0, description="Memory of one GPU [GiB]; None: by its type, or else 16.")
    pools: dict[str, PoolOptions] = Field({}, description="Actors of single backbones: `{NAME: {gpus: 0.5}}`.")
    max_actors: int | None = Field(None, ge=1, description="Upper bound on actors of one backbone pool; None: as fit.")
    trials: int | None = Field(
        None, ge=1, description="Groups the members are split into, trained concurrently; None: as many as run at once."
    )
    workers_per_trial: int = Field(
        1, ge=1, description="Workers of one trial, which share the classes of its members, for very many classes."
    )
    memory_per_trial: float | None = Field(
        None,
        gt=0,
        description="Memory for the activations of one trial worker [GiB]; None: 80 % of the GPU's free memory, or "
        "half of the worker's share of its node's. Members, then classes are processed in turn to stay below.",
    )
    gpus_per_trial: float | None = Field(None, ge=0, description="GPUs of one trial worker; None: 1 if there are any.")
    request: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="Resources that an autoscaling cluster is asked for before work starts: `{GPU: 4}`."
    )
    wait_for_resources_s: int = Field(
        600, ge=1, description="Longest wait for actors or nodes before the job fails [seconds]."
    )
    ray_address: str | None = Field(
        None, description="Ray cluster to join; None: RAY_ADDRESS or the job's cluster if set, else a local one."
    )


class Tracking(Section):
    """Where a finished main job is logged; no part of any fingerprint. How-to in `docs/tracking.md`."""

    mlflow: str = Field(
        "", description="MLflow's tracking server or store, `http://host:5000`; empty: none. Needs `upl-ray[mlflow]`."
    )
    wandb: str = Field(
        "",
        description="Project of Weights & Biases, `PROJECT` or `ENTITY/PROJECT`; empty: none. Needs `upl-ray[wandb]`.",
    )

    @field_validator("wandb")
    @classmethod
    def _a_project(cls, value: str) -> str:
        if value and not re.fullmatch(r"([\w .-]+/)?[\w .-]+", value):
            raise ValueError("write PROJECT or ENTITY/PROJECT; the server comes from WANDB_BASE_URL")
        return value


FewShotName = Literal["linear-probe", "coop", "clip-adapter", "tip-adapter", "tip-adapter-f"]
VariantName = Literal["upl*", "upl", "refined"]
UnlabeledName = Literal["zero-shot", "templates", "fused", "threshold", "upl", "upl*", "refined-own", "refined"]
MethodName = UnlabeledName | FewShotName
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(unique)]


class Compare(Section):
    """Every method on the same cached features."""

    methods: Annotated[tuple[MethodName, ...], AfterValidator(unique), AfterValidator(not_empty)] = Field(
        (
            *("zero-shot", "templates", "fused", "threshold", "upl", "upl*", "refined-own", "refined"),
            *("linear-probe", "coop", "clip-adapter", "tip-adapter", "tip-adapter-f"),
        ),
        description="Rows of the table; refined-own refines the target's own labels, refined the fused ones; those "
        "from linear-probe on need true labels of the corpus.",
    )
    shots: Annotated[Counts, AfterValidator(not_empty)] = Field(
        (1, 2, 4, 8, 16), description="Labeled images of each class [images]; CoOp's."
    )
    seeds: int = Field(3, ge=1, description="Runs of every method with something random, counted from train.seed.")
    templates: str | tuple[str, ...] = Field(
        "imagenet", description="Template ensemble: `imagenet` is open_clip's 80; a file with one a line; or a list."
    )
    threshold: float = Field(0.9, gt=0, lt=1, description="Confidence of threshold self-training [0-1]; FixMatch's.")
    transductive: bool = Field(
        False, description="Also score methods without labels on the corpus, whose images they have learned from."
    )
    imbalance: float = Field(
        1.0,
        ge=1,
        description="Thin the corpus so that its largest class has this many times the images of its smallest, sizes "
        "falling geometrically (CIFAR-LT's, arXiv 1901.05555); needs corpus.labels. Ablations too.",
    )
    classes_present: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Thin the corpus to this share of its classes [0-1]; needs corpus.labels. Ablations too.",
    )
    thinning_seed: int = Field(0, ge=0, description="Seed of the classes and images that stay in a thinned corpus.")
    resamples: int = Field(10_000, ge=100, description="Bootstrap resamples of the scored images [count].")


class Ablate(Section):
    """One change at a time to the configured run, and thresholds, labelers and refined labels against each other.

    An empty list leaves that change out.
    """

    top_k: Counts = Field((1, 2, 4, 8, 16, 32, 64), description="Images a class [images].")
    thresholds: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], AfterValidator(unique)] = Field(
        (0.9,), description="Confidence instead of top-K [0-1]."
    )
    labelers: Literal["own-fused", "each", "all"] = Field(
        "each", description="Labelers: the target and all fused; also each backbone alone; also every combination."
    )
    n_ctx: Counts = Field((1, 2, 4, 8, 16), description="Context vectors [tokens].")
    views: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(unique)] = Field(
        (0, 1, 10, 50), description="Views of each image; 0: its centre crop [count]."
    )
    members: Counts = Field((1, 2, 4, 8, 16), description="Prompts whose outputs are averaged [count].")
    beta: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(unique)] = Field(
        (3.0, 10.0), description="Of refined labels: weight of the features."
    )
    sample_per_class: Counts = Field((64,), description="Of refined labels: images of the fit, a class [images].")
    train_per_class: Counts = Field((16,), description="Of refined labels: images to learn from, a class [images].")
    targets: Annotated[tuple[Literal["soft", "hard"], ...], AfterValidator(unique)] = Field(
        ("hard",), description="Of refined labels: what prompts learn."
    )
    adjust: Annotated[tuple[bool, ...], AfterValidator(unique)] = Field(
        (False,), description="Of refined labels: with logit adjustment, or without."
    )
    seeds: int = Field(3, ge=1, description="Runs of every point, counted from train.seed.")


class Config(Section):
    """Unsupervised Prompt Learning for CLIP on Ray: images without labels in, a better classifier out."""

    corpus: Source = Field(Source(), description="The unlabeled images.")
    scored: Source = Field(
        Source(), description="Held-out images with labels; scored, never learned from. May be empty."
    )
    validation: Source = Field(
        Source(), description="Labeled images that few-shot methods of a comparison choose hyper-parameters on."
    )
    dataset: Dataset = Field(Dataset(), description="A data set of the paper instead of corpus and class names.")
    classnames: Annotated[str | tuple[str, ...], BeforeValidator(classnames_from_yaml)] = Field(
        "",
        description="Text file with one class name a line, a list, or `folders`: the sub-folder names of the corpus.",
    )
    template: str = Field("a photo of a {}.", description="Zero-shot prompt; `{}` is the class name. Paper: one only.")
    backbones: Backbones = Field(
        description="Labelers; `upl-star` is the paper's eight. One is UPL, several are UPL*. Items: `RN50/openai`, ..."
    )
    target: str = Field("", description="Name of the backbone that prompts are learned for; empty: the first.")
    variants: Annotated[tuple[VariantName, ...], AfterValidator(unique), AfterValidator(not_empty)] = Field(
        ("upl*",),
        description="upl*: pseudo-labels of all backbones fused; upl: of the target alone; refined: fused ones, "
        "refined by the corpus' features. First is exported.",
    )
    on_worse: Literal["warn", "stop"] = Field(
        "warn",
        description="What follows where the exported classifier is judged worse than the template: a warning, or the "
        "job ends with status 1 before it is published.",
    )
    storage_path: str = Field(description="Folder of all results: a path, `s3://bucket/prefix`, any fsspec URL.")
    keep_features: Literal["all", "target", "none"] = Field(
        "all",
        description="Features that stay in storage after the run: all; those of the target, which another recipe "
        "needs for its predictions; or none. Dropped ones are computed again when class names or template change.",
    )
    label: Label = Field(Label(), description="Pseudo-labels.")
    refine: Refine = Field(Refine(), description="Refined labels.")
    views: Views = Field(Views(), description="Augmented views.")
    train: Train = Field(Train(), description="Prompt learning.")
    compute: Compute = Field(Compute(), description="Resources.")
    tracking: Tracking = Field(Tracking(), description="Experiment trackers.")
    compare: Compare = Field(Compare(), description="Comparison of methods (jobs/compare.py).")
    ablate: Ablate = Field(Ablate(), description="Ablation of the configured run (jobs/ablate.py).")

    @field_validator("storage_path")
    @classmethod
    def _a_path(cls, value: str) -> str:
        return checked_path(value)

    @field_validator("template")
    @classmethod
    def _one_slot(cls, value: str) -> str:
        if value.count("{}") != 1 or re.search("[{}]", value.replace("{}", "")):
            raise ValueError("the template needs exactly one {} for the class name, as in 'a photo of a {}.'")
        if has_unseen(value):
            raise ValueError("it holds a character that cannot be seen; type it again")
        if in_typographic_quotes(value):
            raise ValueError("it stands in typographic quotes; type plain ones")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for field, given in (("corpus.uri", self.corpus.uris), ("classnames", self.classnames)):
            if not given and not self.dataset.name:
                raise ValueError(f"{field} is empty; set it, or name one of the published data sets in dataset.name")
        names = [b.label for b in self.backbones]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if not names:
            raise ValueError("backbones is empty; name at least one model, for example RN50/openai")
        if doubled and doubled[0]:
            raise ValueError(f"two backbones have the name {doubled[0]!r}; give one of them another `name`")
        for b in self.backbones:
            if not b.label:
                raise ValueError(f"{quoted(b.model)} holds nothing that could be a name in files; give it a `name`")
            if ":" in b.model and b.pretrained:
                raise ValueError(
                    f"pretrained {quoted(b.pretrained)} stands beside {quoted(b.model)}, which has weights of its own; "
                    f"leave it out, or name the model by open_clip's name"
                )
        if self.target and self.target not in names:
            raise ValueError(f"target {self.target!r} is none of the backbones {names}; name one of them")
        if self.label.referee and self.label.referee not in names:
            raise ValueError(f"label.referee {self.label.referee!r} is none of the backbones {names}; name one of them")
        if self.label.referee == self.target_backbone.label:
            raise ValueError(
                f"label.referee is the target {self.label.referee!r}, which would judge itself; name another backbone"
            )
        strangers = sorted(set(self.compute.pools) - set(names))
        if strangers:
            raise ValueError(f"compute.pools names {strangers[0]!r}, none of the backbones {names}; use one of these")
        return self

    @property
    def target_backbone(self) -> Backbone:
        """The backbone that prompts are learned for and that classifies."""
        return next(b for b in self.backbones if self.target in ("", b.label))

    def labelers(self, variant: str) -> tuple[Backbone, ...]:
        """The backbones whose fused probabilities label the corpus: the target alone for `upl`, or else all.

        The referee labels nothing.
        """
        if variant == "upl":
            return (self.target_backbone,)
        return tuple(b for b in self.backbones if b.label != self.label.referee)

    def referees(self, variant: str) -> tuple[Backbone, ...]:
        """The backbones whose labels did not flow into a variant, so that they can judge it."""
        labelers = [b.label for b in self.labelers(variant)]
        return tuple(b for b in self.backbones if b.label not in labelers)


class Drift(Section):
    """When the predictions of new images are so unlike those before that somebody should look."""

    min_images: int = Field(
        100,
        ge=1,
        description="New images, and images before, below which a night is not compared [images].",
    )
    max_class_shift: float = Field(
        0.1, ge=0, le=1, description="Share of new images in other classes than before, beyond chance [0-1]."
    )
    max_confidence_drop: float = Field(0.05, ge=0, le=1, description="Fall of the mean confidence [0-1].")
    max_rejected_rise: float = Field(0.01, ge=0, le=1, description="Rise of the share of unreadable images [0-1].")
    max_removed: float = Field(0.1, ge=0, le=1, description="Share of images gone or changed since the last run [0-1].")
    fail: bool = Field(
        False, description="End with status 1 on an alert, for schedulers that see nothing else; all is written first."
    )


class Predict(Section):
    """Label the new images of a growing corpus with a finished classifier, incrementally."""

    classifier: str = Field(
        description="Folder of a classifier, or the storage of a run, whose newest one is taken; a path or URL."
    )
    corpus: Source = Field(description="The images; only those that are new or changed cost anything.")
    storage_path: str = Field(
        "", description="Folder of features and predictions; empty: the storage that the classifier lies in."
    )
    model: str = Field("", description="Where this cluster finds the image encoder, if not where it was at training.")
    pretrained: str = Field("", description="Its pretrained tag or weights file, if not that of the training.")
    keep_features: Literal["all", "none"] = Field(
        "all", description="Features that stay after the run: all, for the next training; or none."
    )
    max_rejected: float = Field(
        0.01, ge=0, le=1, description="Share of unreadable images above which the job stops [0-1]."
    )
    drift: Drift = Field(Drift(), description="Limits that raise alerts.")
    compute: Compute = Field(Compute(), description="Resources.")

    @model_validator(mode="after")
    def _complete(self) -> Predict:
        if not self.classifier:
            raise ValueError("classifier is empty; name a classifier's folder, or the storage of a finished run")
        if not self.corpus.uris:
            raise ValueError("corpus.uri is empty; name the folder or prefix of the images")
        if self.corpus.labels != "none":
            raise ValueError(f"corpus.labels is {self.corpus.labels!r}, but this job scores nothing; jobs/upl.py does")
        return self
