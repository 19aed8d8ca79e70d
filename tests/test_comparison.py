"""The comparison's arithmetic: samples, thresholds, shared views, intervals, tables. No Ray is started."""

from __future__ import annotations

import csv
import io
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from upl_ray import pseudo_labels
from upl_ray.artifacts import Artifact, Store
from upl_ray.compare import check_labels_given
from upl_ray.comparison import Row, cells, summarize, to_csv, to_markdown
from upl_ray.config import Config, ConfigError, Source, Train
from upl_ray.corpus import Corpus, list_corpus
from upl_ray.features import feature_table
from upl_ray.few_shot_runs import FEW_SHOT_VERSIONS, Samples, few_shot_run
from upl_ray.methods.few_shot import draw
from upl_ray.methods.tip_adapter import search_of
from upl_ray.metrics import paired_interval
from upl_ray.published import published
from upl_ray.runs import Images
from upl_ray.samples import (
    gather_features,
    gathered_artifact,
    read_gathered,
    read_pool,
    read_samples,
    write_above_threshold,
    write_samples,
)
from upl_ray.views import read_views, write_views

NAMES = ("cat", "dog", "sea")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Seven images in three shards; one lies in a folder that is no class."""
    for name in ("cat/1", "cat/2", "cat/3", "dog/1", "dog/2", "sea/1", "else/1"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return list_corpus(Store(str(tmp_path / "run")), Source(uri=str(tmp_path / "images"), labels="folders"), 3)


def test_samples_hold_true_labels_and_are_named_by_what_they_hold(corpus: Corpus) -> None:
    store = corpus.artifact.store
    pool = read_pool(corpus, "folders", NAMES, without={"cat/3.png"})
    assert pool.ids == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "sea/1.png"]
    shots = write_samples(store, pool, draw(pool.labels, 1, seed=0))
    assert sorted(read_samples(shots).values()) == [0, 1, 2]
    assert all(NAMES[label] == image_id.partition("/")[0] for image_id, label in read_samples(shots).items())
    assert write_samples(store, pool, draw(pool.labels, 1, seed=0)) == shots
    others = {write_samples(store, pool, draw(pool.labels, k, seed)).folder for k in (1, 2) for seed in range(8)}
    assert len(others) == 5  # two cats times two dogs of one shot each, and all of both
    table = store.read_table(shots.name("selection.parquet"))
    listed = {i: s.id for s in corpus.shards for i in corpus.labels(s)}
    assert [listed[i] for i in table["image_id"].to_pylist()] == table["shard"].to_pylist()


def test_gathered_features_are_those_of_the_shards(corpus: Corpus) -> None:
    store = corpus.artifact.store
    features = Artifact(store, "features-x", "0")
    expected = {}
    for shard in corpus.shards:
        ids = list(corpus.labels(shard))
        vectors = np.random.default_rng(len(expected)).normal(size=(len(ids), 5)).astype(np.float16)
        expected |= dict(zip(ids, vectors, strict=True))
        features.commit(
            shard.id, parts=[features.write_part(shard.id, feature_table(ids, vectors, set()))], rejected={}
        )
    pool = read_pool(corpus, "folders", NAMES, without=())
    selections = [write_samples(store, pool, draw(pool.labels, 2, seed)) for seed in (0, 1)]
    gathered = gathered_artifact(features, selections)
    gather_features(gathered, features, selections, [corpus])
    for selection in selections:
        np.testing.assert_array_equal(
            read_gathered(gathered, selection), [expected[i] for i in read_samples(selection)]
        )


def test_images_of_the_same_name_in_two_corpora_keep_their_own_features(corpus: Corpus, tmp_path: Path) -> None:
    store, features = corpus.artifact.store, Artifact(corpus.artifact.store, "features-x", "0")
    shutil.copytree(tmp_path / "images", tmp_path / "others")
    others = list_corpus(store, Source(uri=str(tmp_path / "others"), labels="folders"), 4)
    selections = []
    for listed, value in ((corpus, 1), (others, -1)):
        for shard in listed.shards:
            ids = list(listed.labels(shard))
            table = feature_table(ids, np.full((len(ids), 5), value, np.float16), set())
            features.commit(shard.id, parts=[features.write_part(shard.id, table)], rejected={})
        pool = read_pool(listed, "folders", NAMES, without=())
        selections.append(write_samples(store, pool, draw(pool.labels, 2, seed=0)))
    assert list(read_samples(selections[0])) == list(read_samples(selections[1]))
    gathered = gathered_artifact(features, selections)
    gather_features(gathered, features, selections, [corpus, others])
    assert (read_gathered(gathered, selections[0]) == 1).all()
    assert (read_gathered(gathered, selections[1]) == -1).all()


def test_a_fit_is_known_by_its_samples_and_its_method_s_version(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = corpus.artifact.store
    images = Images(Artifact(store, "features-x", "0"), {"scored": corpus.shards}, 4)

    def folder(method: str, gathered: str, shots: str = "0", dataset: str = "") -> str:
        names = {"shots": shots, "views": "0", "validation": "0", "gathered": gathered, "text": "0"}
        samples = Samples(**{step: Artifact(store, step, digest) for step, digest in names.items()})
        return few_shot_run(method, samples, images, 0, Train(), search_of(dataset)).artifacts[0].folder

    before = {m: folder(m, "of-five-shots") for m in FEW_SHOT_VERSIONS}
    assert len(set(before.values())) == 4
    assert {m: folder(m, "of-two-shots") for m in FEW_SHOT_VERSIONS} == before  # where features lie decides nothing
    assert not {folder(m, "of-five-shots", "1") for m in FEW_SHOT_VERSIONS} & set(before.values())
    other_grid = {m for m in FEW_SHOT_VERSIONS if folder(m, "of-five-shots", dataset="dtd") != before[m]}
    assert other_grid == {"tip-adapter", "tip-adapter-f"}
    monkeypatch.setitem(FEW_SHOT_VERSIONS, "tip-adapter", FEW_SHOT_VERSIONS["tip-adapter"] + 1)
    changed = {m for m in FEW_SHOT_VERSIONS if folder(m, "of-five-shots") != before[m]}
    assert changed == {"tip-adapter"}


def test_what_needs_labels_is_refused_without_them_before_anything_is_learned() -> None:
    def check(**sections: Any) -> None:
        check_labels_given(
            Config.model_validate({"backbones": ["demo:rn"], "classnames": ["a", "b"], "storage_path": "x", **sections})
        )

    source = {"uri": "x", "labels": "folders"}
    check(corpus=source, validation=source, compare={"transductive": True})
    with pytest.raises(ConfigError, match=r"compare\.transductive is True, but corpus\.labels is none"):
        check(corpus={"uri": "x"}, compare={"transductive": True})
    with pytest.raises(ConfigError, match=r"validation\.labels is none"):
        check(corpus=source, validation={"uri": "y"})
    check(corpus=source, validation={"uri": "y"}, compare={"methods": ["upl"]})


def labels_table(n: int, seed: int) -> pa.Table:
    """Pseudo-labels with many equal confidences."""
    rng = np.random.default_rng(seed)
    columns = {
        "image_id": [f"{seed}-{i:03d}" for i in range(n)],
        "pseudo_label": pa.array(rng.integers(0, 4, n), pa.int32()),
        "confidence": pa.array(rng.integers(0, 10, n) / 10, pa.float32()),
        "shard": [str(seed)] * n,
    }
    return pa.table(columns)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 0.95])
def test_everything_above_a_threshold_is_kept_in_the_total_order(threshold: float) -> None:
    parts = [labels_table(60, seed) for seed in (1, 2)]
    ours = pseudo_labels.above_threshold([*parts, parts[0]], threshold).to_pylist()
    rows = [r for part in parts for r in part.to_pylist() if r["confidence"] >= np.float32(threshold)]
    rows.sort(key=lambda r: (r["pseudo_label"], -r["confidence"], r["image_id"]))
    assert [r["image_id"] for r in ours] == [r["image_id"] for r in rows]
    seen: dict[int, int] = {}
    for r in ours:
        assert r["rank"] == seen.get(r["pseudo_label"], 0)
        seen[r["pseudo_label"]] = r["rank"] + 1
    everything = pseudo_labels.top_k(parts, 120).to_pylist()
    assert [r for r in everything if r["confidence"] >= np.float32(threshold)] == ours


def test_a_threshold_selection_reads_all_shards(corpus: Corpus) -> None:
    store, pseudo = corpus.artifact.store, Artifact(corpus.artifact.store, "pseudo_labels", "0")
    sure = []
    for shard in corpus.shards:
        ids = list(corpus.labels(shard))
        confidence = [0.5 + 0.1 * (i % 5) for i in range(len(ids))]
        sure += [i for i, c in zip(ids, confidence, strict=True) if c >= 0.6]
        label = pa.array([1] * len(ids), pa.int32())
        table = pa.table({"image_id": ids, "pseudo_label": label, "confidence": pa.array(confidence, pa.float32())})
        pseudo.commit(shard.state, parts=[pseudo.write_part(shard.state, table)])
    above = write_above_threshold(store, corpus, pseudo, 0.6, len(NAMES))
    assert list(read_samples(above)) == sorted(sure)
    assert (above.manifest() or {})["samples_per_class"] == [0, len(sure), 0]


def test_views_of_a_selection_are_rows_and_columns_of_a_bank(corpus: Corpus) -> None:
    store, rng = corpus.artifact.store, np.random.default_rng(0)
    bank, vectors = Artifact(store, "views", "bank"), {}
    for ids in (["cat/1.png", "dog/1.png"], ["sea/1.png", "cat/2.png", "dog/2.png"]):
        views = rng.normal(size=(len(ids), 6, 4)).astype(np.float16)
        vectors |= dict(zip(ids, views, strict=True))
        batch = pd.DataFrame({"image_id": ids, "views": list(views)})
        (part,) = write_views(batch, bank)["part"]
        bank.commit(ids[0].replace("/", "-"), parts=[part], image_ids=ids)
    bank.finish(images=5, views=6)
    pool = read_pool(corpus, "folders", NAMES, without={"cat/3.png"})
    selection = write_samples(store, pool, draw(pool.labels, 1, seed=0))
    for count in (1, 4, 6):
        mine = Artifact(store, "views", f"of-{count}")
        mine.finish(images=3, views=count, bank="bank")
        features, labels = read_views(mine, selection)
        chosen = read_samples(selection)
        assert labels.tolist() == list(chosen.values())
        np.testing.assert_array_equal(features.numpy(), [vectors[i][:count] for i in chosen])
        few, _ = read_views(mine, selection, most=2)
        np.testing.assert_array_equal(few.numpy(), [vectors[i][: min(count, 2)] for i in chosen])


# Intervals


def test_a_paired_interval_is_that_of_resampled_images() -> None:
    rng = np.random.default_rng(1)
    mine, other = rng.random(300) < 0.7, np.mean(rng.random((3, 300)) < 0.6, axis=0)
    gap = mine - other
    naive = [gap[rng.integers(0, 300, 300)].mean() for _ in range(4000)]
    expected = np.quantile(naive, [0.025, 0.975])
    assert paired_interval(gap, 20_000) == pytest.approx(expected, abs=0.006)
    half = 1.96 * gap.std() / math.sqrt(300)
    assert paired_interval(gap, 20_000) == pytest.approx((gap.mean() - half, gap.mean() + half), abs=0.006)
    narrow = paired_interval(gap, 20_000, level=0.5)
    assert paired_interval(gap, 20_000)[0] < narrow[0] < gap.mean() < narrow[1] < paired_interval(gap, 20_000)[1]


def test_equal_methods_differ_by_nothing_and_pairing_matters() -> None:
    assert paired_interval(np.zeros(50), 1000) == (0, 0)
    assert paired_interval(np.full(50, 0.25), 1000) == (0.25, 0.25)


# Tables


def example() -> tuple[list[Row], np.ndarray[Any, np.dtype[np.int64]]]:
    true = np.array([0, 1, 2, 1])
    wrong = np.array([0, 1, 1, 2])
    members = np.stack([true, wrong], axis=1)
    rows = [
        Row("zero-shot", "CLIP", None, [wrong]),
        Row("upl*", "UPL*", None, [true, np.array([0, 1, 2, 2])], [members, members], [0.5, 0.7]),
        Row("coop", "CoOp", 4),
        Row("tip-adapter", "Tip", 4, [wrong], chosen=[{"alpha": 2.0}]),
    ]
    return rows, true


def test_a_row_says_mean_deviation_difference_and_what_is_published() -> None:
    rows, true = example()
    zero_shot, upl, coop, tip = summarize(rows, true, "caltech101", 500)
    assert zero_shot["accuracy"] == {"mean": 0.5, "deviation": None}
    assert upl["accuracy"]["mean"] == 0.875
    assert upl["accuracy"]["deviation"] == pytest.approx(0.125 * math.sqrt(2))
    assert upl["single_prompt"]["mean"] == 0.75
    assert upl["transductive"]["mean"] == pytest.approx(0.6)
    assert upl["differences"]["zero-shot"]["mean"] == pytest.approx(0.375)
    assert set(upl["differences"]) == {"zero-shot"}
    assert tip["differences"]["upl*"]["mean"] == pytest.approx(-0.375)
    assert tip["chosen"] == [{"alpha": 2.0}]
    assert (coop["accuracy"], coop["differences"], coop["runs"]) == (None, {}, 0)
    assert zero_shot["published"] == {"this_dataset": 0.8609, "mean_of_11": None}
    assert coop["published"] == {"this_dataset": None, "mean_of_11": 0.6684}


def test_what_was_not_run_is_an_empty_cell_beside_what_is_published() -> None:
    rows, true = example()
    header, *lines = cells(summarize(rows, true, "", 500))
    coop = dict(zip(header, lines[2], strict=True))
    filled = {"method": "CoOp", "shots": "4", "published, RN50, mean of 11 sets": "66.84"}
    assert {k: v for k, v in coop.items() if v} == filled
    own = [c for c in header if "published" not in c]
    published_figures = {f"{100 * p:.2f}" for p in (0.6837, 0.6684, 0.6654)}
    assert not published_figures & {dict(zip(header, line, strict=True))[c] for line in lines for c in own}


def test_the_table_is_the_same_in_markdown_and_csv() -> None:
    rows, true = example()
    lines = cells(summarize(rows, true, "", 500))
    markdown = [[c.strip() for c in row.strip("|").split("|")] for row in to_markdown(lines).splitlines()]
    assert [markdown[0], *markdown[2:]] == lines == list(csv.reader(io.StringIO(to_csv(lines))))
    assert len({len(row) for row in to_markdown(lines).splitlines()}) == 1
    assert set("".join(markdown[1])) == {"-", ":"}


def test_the_published_figures_are_those_of_the_papers() -> None:
    assert published("", "upl*", None) == (None, pytest.approx(0.6837))
    assert published("stanford_cars", "upl", None) == (pytest.approx(0.6213), None)
    assert published("ucf101", "zero-shot", None)[0] == pytest.approx(0.6270)
    coop, tip, tip_f = ([published("", m, k)[1] for k in (2, 4, 8)] for m in ("coop", "tip-adapter", "tip-adapter-f"))
    assert (coop[0], tip[1], tip_f[2]) == pytest.approx((0.6221, 0.6654, 0.7245))
    assert published("", "linear-probe", 4) == (None, None)
