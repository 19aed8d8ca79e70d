"""Embedding against a plain loop with open_clip itself: resolutions, worker counts, bad images, resuming."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import write_model
from PIL import Image

from upl_ray.artifacts import Store
from upl_ray.backbones import resolve
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Backbone, Compute, JobError, Source
from upl_ray.corpus import Corpus, list_corpus
from upl_ray.embed import decode_chunk, embed
from upl_ray.features import feature_artifact, read_features
from upl_ray.images import Geometry
from upl_ray.reading import MISSING
from upl_ray.rejected import find_rejected

SIZES = (224, 288, 384, 448)  # the paper's four resolutions


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-one noisy gradients of many sizes and one broken file."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(21):
        h, w = rng.integers(40, 600, 2)
        ramp = np.linspace(0, 255, w)[None, :, None] * np.ones((h, 1, 3))
        noisy = np.clip(ramp + rng.normal(0, 40, (h, w, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:02d}.{'jpg' if i % 2 else 'png'}")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    return folder


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[ClipSpec]:
    """One random model of each resolution."""
    root = tmp_path_factory.mktemp("models")
    made = [write_model(root / f"m{s}", {"image_size": s, "patch_size": 32}, seed=s) for s in SIZES]
    return [resolve(Backbone(model=f"local-dir:{folder}")) for folder in made]


def embed_all(corpus: Corpus, specs: list[ClipSpec], compute: Compute) -> None:
    embed([corpus], specs, compute, {s.name: {shard.id for shard in corpus.shards} for s in specs})


def stored(corpus: Corpus, spec: ClipSpec) -> tuple[list[str], np.ndarray]:  # type: ignore[type-arg]
    shards = [read_features(feature_artifact(corpus.artifact.store, spec), s) for s in corpus.shards]
    ids = [i for shard_ids, _ in shards for i in shard_ids]
    features = np.concatenate([f for _, f in shards])
    order = np.argsort(ids)
    return sorted(ids), features[order]


def test_four_resolutions_in_one_pass_equal_a_plain_open_clip_loop(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    corpus = list_corpus(Store(str(tmp_path)), Source(uri=str(pictures)), 10)
    embed_all(corpus, specs, Compute(chunk_size=4))
    for spec in specs:
        model, _, preprocess = open_clip.create_model_and_transforms(spec.source)
        model.eval()
        ids, features = stored(corpus, spec)
        assert ids == sorted(p.name for p in pictures.iterdir() if p.name != "broken.jpg")
        with torch.inference_mode():
            batch = torch.stack([preprocess(Image.open(pictures / i)) for i in ids])
            expected = model.encode_image(batch, normalize=True).numpy()
        np.testing.assert_allclose(features.astype(np.float32), expected, atol=1e-3)  # stored in half precision


@pytest.mark.slow
def test_features_are_bitwise_equal_for_any_number_of_actors(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    results = []
    for actors in (1, 2):
        corpus = list_corpus(Store(str(tmp_path / str(actors))), Source(uri=str(pictures)), 10)
        embed_all(corpus, specs[:1], Compute(chunk_size=4, max_actors=actors))
        results.append(stored(corpus, specs[0]))
    assert results[0][0] == results[1][0]
    assert np.array_equal(results[0][1], results[1][1])


@pytest.mark.slow
def test_only_missing_pairs_of_shard_and_backbone_are_computed(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    corpus = list_corpus(store, Source(uri=str(pictures)), 10)
    embed_all(corpus, specs[:1], Compute(chunk_size=4))
    lost = feature_artifact(store, specs[0])
    victim = corpus.shards[1].id
    kept = {s.id: lost.read_commit(s.id)["parts"] for s in corpus.shards if s.id != victim}
    (tmp_path / lost.name(f"commits/{victim}.json")).unlink()  # as if the run had been killed before this commit
    embed_all(corpus, specs[:2], Compute(chunk_size=4))  # and a second backbone was added since
    assert {s.id: lost.read_commit(s.id)["parts"] for s in corpus.shards if s.id != victim} == kept
    assert lost.committed() == feature_artifact(store, specs[1]).committed() == {s.id for s in corpus.shards}


def test_images_that_are_gone_are_not_looked_for_and_move_no_other(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    corpus = list_corpus(Store(str(tmp_path / "storage")), Source(uri=str(tmp_path / "pictures")), 30)
    (shard,), geometry = corpus.shards, Geometry(32, 32)
    whole = decode_chunk(shard.root, corpus.listing(shard), [geometry])
    gone = frozenset(whole["image_ids"][:5])
    for image_id in gone:
        (tmp_path / "pictures" / image_id).unlink()
    rest = decode_chunk(shard.root, corpus.listing(shard), [geometry], gone)
    assert rest["image_ids"] == whole["image_ids"]
    assert rest["reasons"] == [MISSING] * 5 + whole["reasons"][5:]
    assert np.array_equal(rest[geometry.key][5:], whole[geometry.key][5:])
    first = decode_chunk(shard.root, corpus.listing(shard).slice(0, 5), [geometry], gone)  # all of a chunk
    assert first["reasons"] == [MISSING] * 5


@pytest.mark.slow
def test_an_image_that_was_away_while_its_shard_was_embedded_is_embedded_when_it_is_back(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    folder, store = tmp_path / "pictures", Store(str(tmp_path / "storage"))
    shutil.copytree(pictures, folder)
    list_corpus(store, Source(uri=str(folder)), 30)
    (folder / "04.png").rename(tmp_path / "04.png")  # its time stays, as under a mount that is away for a night
    embed_all(list_corpus(store, Source(uri=str(folder)), 30), specs[:1], Compute(chunk_size=4))
    (tmp_path / "04.png").rename(folder / "04.png")
    corpus = list_corpus(store, Source(uri=str(folder)), 30)
    embed_all(corpus, specs[:1], Compute(chunk_size=4))
    assert stored(corpus, specs[0])[0] == sorted(p.name for p in pictures.iterdir() if p.name != "broken.jpg")
    assert list(find_rejected([feature_artifact(store, specs[0])], [corpus])[0]) == ["broken.jpg"]


def test_a_listed_image_that_is_away_when_it_is_read_is_embedded_by_the_next_run(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    folder, store = tmp_path / "pictures", Store(str(tmp_path / "storage"))
    shutil.copytree(pictures, folder)
    corpus = list_corpus(store, Source(uri=str(folder)), 10)
    away = {"04.png", "05.jpg", "12.png"}
    for name in away:
        (folder / name).rename(tmp_path / name)
    embed_all(corpus, specs[:1], Compute(chunk_size=4))
    rejected = find_rejected([feature_artifact(store, specs[0])], [corpus])[0]
    assert {i for i, reason in rejected.items() if reason == MISSING} == away
    for name in away:
        (tmp_path / name).rename(folder / name)
    back = list_corpus(store, Source(uri=str(folder)), 10)
    assert (back.added, back.images) == (len(away), corpus.images)
    embed_all(back, specs[:1], Compute(chunk_size=4))
    assert stored(back, specs[0])[0] == sorted(p.name for p in pictures.iterdir() if p.name != "broken.jpg")
    assert list(find_rejected([feature_artifact(store, specs[0])], [back])[0]) == ["broken.jpg"]
    assert list_corpus(store, Source(uri=str(folder)), 10).digest == back.digest  # a broken one stays


@pytest.mark.slow
def test_what_a_manifest_names_in_vain_is_looked_for_twice(
    cluster: None, pictures: Path, specs: list[ClipSpec], tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    names = [f"{i:02d}.{'jpg' if i % 2 else 'png'}" for i in range(8)]
    manifest = tmp_path / "pictures" / "list.txt"
    store, source, added = Store(str(tmp_path / "storage")), Source(uri=str(manifest)), []
    for night in range(5):
        manifest.write_text("\n".join([*names, "no.jpg", *(["08.png"] if night > 2 else [])]))
        corpus = list_corpus(store, source, 30)
        added.append(corpus.added)
        embed_all(corpus, specs[:1], Compute(chunk_size=4))  # it is alone in its chunk
        assert corpus.images == 9 + (night > 2)
        assert find_rejected([feature_artifact(store, specs[0])], [corpus])[0] == {"no.jpg": MISSING}
    assert added == [9, 1, 0, 1, 0]


def test_a_folder_of_a_manifest_that_lost_its_mount_stops_the_job(pictures: Path, tmp_path: Path) -> None:
    mount, manifest = tmp_path / "mount", tmp_path / "lists" / "list.txt"
    shutil.copytree(pictures, mount / "cats")
    manifest.parent.mkdir()
    manifest.write_text(f"{mount}/cats/00.png\nfile://{mount}/cats/01.jpg\n")
    roots = (str(mount), f"file://{mount}")
    corpus = list_corpus(Store(str(tmp_path / "storage")), Source(uri=str(manifest), roots=roots), 30)
    (shard,) = corpus.shards
    assert decode_chunk(shard.root, corpus.listing(shard), [Geometry(32, 32)])["reasons"] == ["", ""]
    shutil.rmtree(mount / "cats")
    for _ in range(2):
        with pytest.raises(JobError, match=r"None of 2 listed images is found .* every node must reach"):
            decode_chunk(shard.root, corpus.listing(shard), [Geometry(32, 32)])
        (mount / "cats").mkdir(exist_ok=True)  # where nothing is mounted
