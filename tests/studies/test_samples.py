"""Images that studies learn from: samples, thresholds, gathered features, shared views. No Ray is started."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from upl_ray.config.settings import Source
from upl_ray.corpus.shards import Corpus, list_corpus
from upl_ray.pipeline.features import feature_table
from upl_ray.pipeline.views import read_views, write_views
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.studies.samples import (
    draw,
    gather_features,
    gathered_step,
    kept_for_validation,
    read_gathered,
    read_labeled_images,
    read_samples,
    write_above_threshold,
    write_samples,
)
from upl_ray.upl.top_k import above_threshold, top_k

NAMES = ("cat", "dog", "sea")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Seven images in three shards; one lies in a folder that is no class."""
    for name in ("cat/1", "cat/2", "cat/3", "dog/1", "dog/2", "sea/1", "else/1"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return list_corpus(Store(str(tmp_path / "run")), Source(uri=str(tmp_path / "images"), labels="folders"), 3)


def sample(corpus: Corpus, shots: int, seed: int = 0, unreadable: tuple[str, ...] = ()) -> Step:
    images = read_labeled_images(corpus, "folders", NAMES, unreadable)
    return write_samples(corpus.step.store, images, draw(images.labels, shots, seed))


def write_features(step: Step, corpus: Corpus, vectors: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Commit features of a corpus; returns them by image id."""
    found = {}
    for shard in corpus.shards:
        ids = list(corpus.labels(shard))
        features = vectors(len(ids)).astype(np.float16)
        step.commit(shard.id, parts=[step.write_part(shard.id, feature_table(ids, features, set()))], rejected={})
        found |= dict(zip(ids, features, strict=True))
    return found


def test_draws_are_nested_balanced_and_never_unlabeled() -> None:
    labels = np.array([2, 0, -1, 0, 0, 2, 0, 1, -1, 0])
    for seed in range(5):
        most = draw(labels, 3, seed)
        assert [len(rows) for rows in most] == [3, 1, 2]  # all of a class that has fewer
        for c, rows in enumerate(most):
            assert set(labels[rows]) == {c}
            assert len(set(rows.tolist())) == len(rows)
            for k in (1, 2):
                assert draw(labels, k, seed)[c].tolist() == rows[:k].tolist()
    pairs = {tuple(draw(labels, 2, seed, v)[0].tolist()) for seed in range(20) for v in (False, True)}
    assert len(pairs) > 10  # of the 20 ordered pairs of five images


def test_a_fifth_of_ids_validates_whatever_else_there_is() -> None:
    share = np.mean([kept_for_validation(f"folder/{i}.jpg") for i in range(20_000)])
    assert share == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 20_000))


def test_samples_hold_true_labels_and_their_content_is_their_identity(corpus: Corpus) -> None:
    images = read_labeled_images(corpus, "folders", NAMES, unreadable={"cat/3.png"})
    assert images.ids == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "sea/1.png"]
    shots = sample(corpus, 1, unreadable=("cat/3.png",))
    assert sorted(read_samples(shots).values()) == [0, 1, 2]
    assert all(NAMES[label] == image_id.partition("/")[0] for image_id, label in read_samples(shots).items())
    assert sample(corpus, 1, unreadable=("cat/3.png",)) == shots
    others = {sample(corpus, k, seed, ("cat/3.png",)).folder for k in (1, 2) for seed in range(8)}
    assert len(others) == 5  # two cats times two dogs of one shot each, and all of both
    table = corpus.step.store.read_table(shots.path("selection.parquet"))
    listed = {i: s.id for s in corpus.shards for i in corpus.labels(s)}
    assert [listed[i] for i in table["image_id"].to_pylist()] == table["shard"].to_pylist()


def test_gathered_features_are_those_of_the_shards_even_where_two_corpora_have_equal_ids(
    corpus: Corpus, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "images", tmp_path / "others")
    others = list_corpus(corpus.step.store, Source(uri=str(tmp_path / "others"), labels="folders"), 4)
    features, rng = Step(corpus.step.store, "features", "0"), np.random.default_rng(0)
    expected = [write_features(features, c, lambda n: rng.normal(size=(n, 5))) for c in (corpus, others)]
    cases = [(sample(c, 2, seed), e) for c, e in zip((corpus, others), expected, strict=True) for seed in (0, 1)]
    selections = [selection for selection, _ in cases]
    assert list(read_samples(selections[0])) == list(read_samples(selections[2]))
    gathered = gathered_step(features, selections)
    gather_features(gathered, features, selections, [corpus, others])
    for selection, of_corpus in cases:
        np.testing.assert_array_equal(
            read_gathered(gathered, selection), [of_corpus[i] for i in read_samples(selection)]
        )


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 0.95])
def test_everything_above_a_threshold_is_kept_in_the_total_order(threshold: float) -> None:
    parts = []
    for seed in (1, 2):  # with many equal confidences
        rng = np.random.default_rng(seed)
        columns = {
            "image_id": [f"{seed}-{i:03d}" for i in range(60)],
            "pseudo_label": pa.array(rng.integers(0, 4, 60), pa.int32()),
            "confidence": pa.array(rng.integers(0, 10, 60) / 10, pa.float32()),
            "shard": [str(seed)] * 60,
        }
        parts.append(pa.table(columns))
    ours = above_threshold([*parts, parts[0]], threshold).to_pylist()
    rows = [r for part in parts for r in part.to_pylist() if r["confidence"] >= np.float32(threshold)]
    rows.sort(key=lambda r: (r["pseudo_label"], -r["confidence"], r["image_id"]))
    assert [r["image_id"] for r in ours] == [r["image_id"] for r in rows]
    everything = top_k(parts, 120).to_pylist()  # ranks too
    assert [r for r in everything if r["confidence"] >= np.float32(threshold)] == ours


def test_a_threshold_selection_reads_all_shards(corpus: Corpus) -> None:
    pseudo, sure = Step(corpus.step.store, "pseudo_labels", "0"), []
    for shard in corpus.shards:
        ids = list(corpus.labels(shard))
        confidence = [0.5 + 0.1 * (i % 5) for i in range(len(ids))]
        sure += [i for i, c in zip(ids, confidence, strict=True) if c >= 0.6]
        label = pa.array([1] * len(ids), pa.int32())
        table = pa.table({"image_id": ids, "pseudo_label": label, "confidence": pa.array(confidence, pa.float32())})
        pseudo.commit(shard.state, parts=[pseudo.write_part(shard.state, table)])
    above = write_above_threshold(corpus.step.store, corpus, pseudo, 0.6, len(NAMES))
    assert list(read_samples(above)) == sorted(sure)
    assert above.manifest()["samples_per_class"] == [0, len(sure), 0]


def test_views_of_a_selection_are_rows_and_columns_of_a_bank(corpus: Corpus) -> None:
    store, rng = corpus.step.store, np.random.default_rng(0)
    bank, vectors = Step(store, "views", "bank"), {}
    for ids in (["cat/1.png", "dog/1.png"], ["sea/1.png", "cat/2.png", "dog/2.png"]):
        views = rng.normal(size=(len(ids), 6, 4)).astype(np.float16)
        vectors |= dict(zip(ids, views, strict=True))
        (part,) = write_views(pd.DataFrame({"image_id": ids, "views": list(views)}), bank)["part"]
        bank.commit(ids[0].replace("/", "-"), parts=[part], image_ids=ids)
    bank.finish(images=5, views=6)
    selection = sample(corpus, 1, unreadable=("cat/3.png",))
    chosen = read_samples(selection)
    for count in (1, 4, 6):
        mine = Step(store, "views", f"of-{count}")
        mine.finish(images=3, views=count, bank="bank")
        for most in (None, 2):
            features, labels = read_views(mine, selection, most)
            assert labels.tolist() == list(chosen.values())
            expected = [vectors[i][: min(count, most or count)] for i in chosen]
            np.testing.assert_array_equal(features.numpy(), expected)
