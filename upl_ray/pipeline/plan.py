"""The plan of a run: all of its steps, known from the settings and the corpus, computed once and handed down.

features -> text -> [refinement ->] pseudo_labels -> selection -> views -> members -> classifier -> predictions
-> scores, verdict

Only a refinement is known when it is made: it may keep the fit of before. Then the plan is computed again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from upl_ray.pipeline.classifier import classifier_step
from upl_ray.pipeline.features import feature_step, forgotten_shards
from upl_ray.pipeline.inputs import Inputs
from upl_ray.pipeline.members import member_step
from upl_ray.pipeline.predictions import prediction_step
from upl_ray.pipeline.pseudo_labels import Labeler, pseudo_label_step
from upl_ray.pipeline.refinement import find_verdict, kept_refinement, last_refinement, refinement_step
from upl_ray.pipeline.scores import labeled_sources, scores_step
from upl_ray.pipeline.selection import selection_step
from upl_ray.pipeline.shardwise import shards_without_rows, unfinished_shards
from upl_ray.pipeline.soft_selection import soft_selection_step, soft_view_step
from upl_ray.pipeline.text import text_step
from upl_ray.pipeline.verdict import Bench, verdict_step
from upl_ray.pipeline.views import view_step
from upl_ray.storage.chain import Chain
from upl_ray.storage.step import Step
from upl_ray.storage.store import read_ahead
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.zero_shot import all_prompts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The steps of a run."""

    features: dict[str, Step]  # of every backbone, by its name
    labelers: dict[str, tuple[Labeler, ...]]  # of every variant
    referees: dict[str, tuple[Labeler, ...]]  # of every variant: those whose labels did not flow into it
    chains: dict[str, Chain]  # of every variant, the exported one first
    target: str  # name of the backbone that prompts are learned for

    @property
    def results(self) -> list[Step]:
        """The steps with files that results are made of; members look for their own prompts."""
        chains = [
            (c.pseudo_labels, c.selection, c.classifier, c.predictions, c.scores, c.refinement)
            for c in self.chains.values()
        ]
        labelers = [x for of in (self.labelers, self.referees) for group in of.values() for x in group]
        texts = [step for x in labelers for step in (x.text, x.negatives)]
        return [step for step in (*self.features.values(), *texts, *sum(chains, ())) if step]

    def bench(self, variant: str) -> Bench:
        """Who judges a variant."""
        labelers, referees = self.labelers[variant], self.referees[variant]
        step = verdict_step(self.chains[variant].predictions, labelers, referees, self.target)
        return Bench(step, labelers, referees, self.target)

    @property
    def judges(self) -> list[Labeler]:
        """All backbones that judge something."""
        everyone = [x for of in (self.labelers, self.referees) for group in of.values() for x in group]
        return list({x.spec.name: x for x in everyone if x.alone}.values())


def forget_lost(steps: Iterable[Step]) -> list[str]:
    """Take back what steps declare done where files are gone, so that it is made again; the files' names."""
    lost = []
    known = list({step.folder: step for step in steps}.values())
    for step, files in zip(known, read_ahead(known, Step.forget_lost), strict=True):
        for file in files[:1]:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            log.warning("%-12s %s%s: gone from storage, and made again", "lost", step.path(file), more)
        lost += files
    return lost


def plan_run(inputs: Inputs) -> Plan:
    """The steps of the main job, whether they are finished or not."""
    features = {name: feature_step(inputs.store, spec) for name, spec in inputs.specs.items()}
    variants: tuple[str, ...] = inputs.config.variants
    embedded = embedded_backbones(inputs)

    def plan(specs: Iterable[ClipSpec]) -> tuple[Labeler, ...]:
        found = plan_labelers(inputs, features, specs, inputs.config.template)
        return tuple(x if x.spec == inputs.target else replace(x, alone=_plan_judge(inputs, x)) for x in found)

    labelers = {v: plan(inputs.labelers(v)) for v in variants}
    referees = {v: plan(s for s in inputs.referees(v) if s.name in embedded) for v in variants}
    chains = {v: _plan_chain(inputs, features, labelers[v], v == "refined") for v in variants}
    return Plan(features, labelers, referees, chains, inputs.target.name)


def _plan_judge(inputs: Inputs, labeler: Labeler) -> Step:
    """The refinement with which a labeler judges; one of before where its features are not kept for a new one."""
    recipe, corpus = inputs.config.refine, inputs.corpus
    step = refinement_step(corpus, [labeler], recipe)
    before = (
        None if inputs.config.keep_features == "all" or step.finished else last_refinement(corpus, [labeler], recipe)
    )
    return before or kept_refinement(step)


def plan_labelers(
    inputs: Inputs, features: dict[str, Step], specs: Iterable[ClipSpec], template: str | tuple[str, ...]
) -> tuple[Labeler, ...]:
    """Backbones that label with a template, in the order of their names: the same labelers always sum alike."""
    prompts = all_prompts(template, inputs.classnames)

    def plan(spec: ClipSpec) -> Labeler:
        words = inputs.negatives.get(spec.name, []) if template == inputs.config.template else []
        negatives = text_step(inputs.store, spec, words) if words else None
        return Labeler(spec, features[spec.name], text_step(inputs.store, spec, prompts), negatives)

    return tuple(plan(spec) for spec in sorted(specs, key=lambda s: s.name))


def _plan_chain(inputs: Inputs, features: dict[str, Step], labelers: tuple[Labeler, ...], refined: bool) -> Chain:
    config, target = inputs.config, inputs.target
    own = next(x for x in labelers if x.spec == target)
    refinement, kept = None, None
    if refined:
        refinement = refinement_step(inputs.corpus, labelers, config.refine, inputs.corrections)
        kept = kept_refinement(refinement)
    pseudo_labels = pseudo_label_step(inputs.store, labelers, kept)
    if refined:
        selection = soft_selection_step(
            inputs.corpus, pseudo_labels, config.refine, config.label.min_known, inputs.corrections
        )
        views = soft_view_step(selection, target, config.refine)
    else:
        selection = selection_step(
            inputs.corpus, pseudo_labels, config.label.top_k, config.label.min_known, inputs.corrections
        )
        views = view_step(selection, target, config.views)
    members = member_step(views, target, inputs.classnames, config.train, kept if config.refine.adjust else None)
    classifier = classifier_step(members, config.train, own)
    predictions = prediction_step(inputs.corpus, classifier, features[target.name])
    scores = scores_step(predictions, labeled_sources(inputs))
    return Chain(pseudo_labels, selection, views, members, classifier, predictions, scores, refinement)


def embedded_backbones(inputs: Inputs) -> list[str]:
    """Names of the backbones that have features: where these are dropped after use, only of those that are used."""
    used = {s.name for v in inputs.config.variants for s in inputs.labelers(v)}
    used |= {inputs.target.name, inputs.config.label.referee}
    return [name for name in inputs.specs if inputs.config.keep_features == "all" or name in used]


def needed_features(inputs: Inputs, plan: Plan) -> dict[str, set[str]]:
    """Shards whose features of each backbone must be in storage for this run: backbone name -> shard ids.

    All of them; or, where features are dropped after use, only those that pseudo-labels or predictions still miss, and
    those whose rejected images are not known.
    """
    keep = inputs.config.keep_features
    everything, corpus = {s.id for c in inputs.corpora for s in c.shards}, {s.id for s in inputs.corpus.shards}
    if keep == "all":
        return dict.fromkeys(inputs.specs, everything)
    needed: dict[str, set[str]] = defaultdict(set)
    for variant, chain in plan.chains.items():
        unlabeled, unpredicted = (_unread(inputs, step) for step in (chain.pseudo_labels, chain.predictions))
        judging = {s.id for s in plan.bench(variant).unjudged_shards(chain, inputs.corpus)}
        refining = corpus if _reads_sample(chain, plan.target) else set()
        for labeler in plan.labelers[variant]:
            needed[labeler.spec.name] |= unlabeled | refining | (judging if len(plan.labelers[variant]) > 1 else set())
        for referee in plan.referees[variant]:
            needed[referee.spec.name] |= judging
        needed[inputs.target.name] |= unlabeled | unpredicted
    for judge in plan.judges:
        needed[judge.spec.name] |= set() if judge.alone and judge.alone.finished else corpus
    shards = [s for c in inputs.corpora for s in c.shards]
    for name in needed:
        needed[name] |= forgotten_shards(plan.features[name], shards)
    if keep == "target":
        needed[inputs.target.name] = everything
    return dict(needed)


def _reads_sample(chain: Chain, target: str) -> bool:
    """True if a step of refined labels is missing that reads the labelers' features of a sample of the corpus."""
    if not chain.refinement:
        return False
    made = all(s.finished for s in (chain.refinement, chain.selection, chain.views))
    return not made or find_verdict(chain.refinement, target) is None


def _unread(inputs: Inputs, step: Step) -> set[str]:
    return {s.id for s in shards_without_rows(unfinished_shards(inputs.corpora, step), step)}


def present_features(plan: Plan, needed: dict[str, set[str]]) -> bool:
    """True if nothing has to be embedded."""
    return all(ids <= plan.features[name].committed() for name, ids in needed.items() if ids)
