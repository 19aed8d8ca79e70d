"""The whole configuration: one typed, frozen model.

Defaults are the published recipe (paper: arXiv 2204.03649, sections 4.1 and 4.2) unless a field says otherwise.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from upl_ray.section import ConfigError as ConfigError
from upl_ray.section import Job
from upl_ray.section import JobError as JobError
from upl_ray.section import Section as Section
from upl_ray.section import sentence as sentence
from upl_ray.study_config import Ablate, Compare, Dataset


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
    quick_gelu: bool | None = Field(None, description="Force QuickGELU on or off; None follows the pretrained tag.")

    @property
    def label(self) -> str:
        """The name, or one made from model and pretrained: `RN50-openai`."""
        if self.name:
            return self.name
        text = self.model.rsplit("/", 1)[-1].rsplit(":", 1)[-1]
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
        elif not isinstance(item, str):
            raise ValueError(f"{item!r} is no model; write for example RN50/openai, or fields under `model:`")
        elif item == "upl-star":
            expanded += expand_backbones(item)
        elif ":" in item:  # hf-hub:org/repo, local-dir:/a/b, demo:name carry no tag
            expanded.append(Backbone(model=item))
        else:
            model, _, pretrained = item.partition("/")
            expanded.append(Backbone(model=model, pretrained=pretrained or None))
    return tuple(expanded)


class Source(Section):
    """Where images lie."""

    uri: str | tuple[str, ...] = Field(
        "",
        description="Folder or prefix of images (nested), of tar or Parquet archives of them, one such file, a pattern "
        "(`s3://bucket/shards/*.tar`), or a manifest that names images (txt, csv, jsonl); `demo:digits/...`. A list: "
        "all of them.",
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

    @property
    def uris(self) -> tuple[str, ...]:
        """The addresses; empty if there is none."""
        return (self.uri,) * bool(self.uri) if isinstance(self.uri, str) else self.uri


class Label(Section):
    """Pseudo-labels (paper, section 3.2)."""

    top_k: int = Field(16, ge=1, description="Most confident images kept for each class [images]; paper: 16.")
    max_rejected: float = Field(0.01, ge=0, le=1, description="Share of unreadable images that stops the job [0-1].")
    max_pixels: int = Field(178_956_970, ge=1, le=178_956_970, description="Larger images are rejected [pixels].")


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


ClassPosition = Literal["end", "middle", "front"]


class Train(Section):
    """Prompt learning (paper, section 4.1; the schedule as its authors' logs show it)."""

    n_ctx: int = Field(16, ge=1, description="Context vectors M, shared by all classes [tokens]; paper: 16.")
    class_position: ClassPosition = Field("end", description="Where the class name stands in the context; paper: end.")
    class_specific: bool = Field(False, description="A context of its own for every class; paper: shared by all.")
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
        "probabilities", description="What is averaged over members; paper: probabilities, its code: logits."
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
        1, ge=1, description="Ray Train workers of one trial, which share its members; 1 trains in the trial itself."
    )
    memory_per_trial: float | None = Field(
        None,
        gt=0,
        description="Memory for the activations of one trial worker [GiB]; None: 80 % of the GPU's free memory, or a "
        "share of half of the machine's. Members, then classes are processed in turn to stay below.",
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


def expand_classnames(value: Any) -> Any:
    """Numbers that YAML has read become names again; what it has read as true or false cannot."""
    if not isinstance(value, list | tuple):
        return value
    for item in value:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise ValueError(f"the class name {item!r} is no text; put it in quotes")
    return tuple(str(item) for item in value)


Backbones = Annotated[tuple[Backbone, ...], BeforeValidator(expand_backbones)]


class Config(Job):
    """Unsupervised Prompt Learning for CLIP on Ray: images without labels in, a better classifier out."""

    corpus: Source = Field(Source(), description="The unlabeled images.")
    scored: Source = Field(
        Source(), description="Held-out images with labels; scored, never learned from. May be empty."
    )
    validation: Source = Field(
        Source(), description="Labeled images that few-shot methods of a comparison choose hyper-parameters on."
    )
    dataset: Dataset = Field(Dataset(), description="A data set of the paper instead of corpus and class names.")
    classnames: Annotated[str | tuple[str, ...], BeforeValidator(expand_classnames)] = Field(
        "",
        description="Text file with one class name a line, a list, or `folders`: the sub-folder names of the corpus.",
    )
    template: str = Field("a photo of a {}.", description="Zero-shot prompt; `{}` is the class name. Paper: one only.")
    backbones: Backbones = Field(
        description="Labelers; `upl-star` is the paper's eight. One is UPL, several are UPL*. Items: `RN50/openai`, ..."
    )
    target: str = Field("", description="Name of the backbone that prompts are learned for; empty: the first.")
    variants: tuple[Literal["upl*", "upl"], ...] = Field(
        ("upl*",),
        description="upl*: pseudo-labels of all backbones fused; upl: of the target alone. First is exported.",
    )
    storage_path: str = Field(description="Folder of all results: a path, `s3://bucket/prefix`, any fsspec URL.")
    keep_features: Literal["all", "target", "none"] = Field(
        "all",
        description="Features that stay in storage after the run: all; those of the target, which another recipe "
        "needs for its predictions; or none. What is dropped is computed again when class names or template change.",
    )
    label: Label = Field(Label(), description="Pseudo-labels.")
    views: Views = Field(Views(), description="Augmented views.")
    train: Train = Field(Train(), description="Prompt learning.")
    compute: Compute = Field(Compute(), description="Resources.")
    compare: Compare = Field(Compare(), description="Comparison of methods (jobs/compare.py).")
    ablate: Ablate = Field(Ablate(), description="Ablation of the configured run (jobs/ablate.py).")

    @field_validator("template")
    @classmethod
    def _one_slot(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError("the template needs exactly one {} for the class name, as in 'a photo of a {}.'")
        return value

    @field_validator("variants")
    @classmethod
    def _some_variant(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name one or both of upl* and upl, each once")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for field, given in (("corpus.uri", self.corpus.uris), ("classnames", self.classnames)):
            if not given and not self.dataset.name:
                raise ValueError(f"{field} is empty; say it, or name one of the published data sets in dataset.name")
        names = [b.label for b in self.backbones]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if not names:
            raise ValueError("backbones is empty; name at least one model, for example RN50/openai")
        if doubled:
            raise ValueError(f"two backbones are called {doubled[0]!r}; give one of them another `name`")
        if self.target and self.target not in names:
            raise ValueError(f"target {self.target!r} is none of the backbones {names}; name one of them")
        strangers = sorted(set(self.compute.pools) - set(names))
        if strangers:
            raise ValueError(f"compute.pools names {strangers[0]!r}, none of the backbones {names}; use one of these")
        return self

    @property
    def target_backbone(self) -> Backbone:
        """The backbone that prompts are learned for and that classifies."""
        return next(b for b in self.backbones if self.target in ("", b.label))

    def labelers(self, variant: str) -> tuple[Backbone, ...]:
        """The backbones whose fused probabilities label the corpus: all for `upl*`, the target alone for `upl`."""
        return self.backbones if variant == "upl*" else (self.target_backbone,)
