"""Two runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from report_pages import Seen, commits_of, write_images

from benchmarks.synthetic_run import SyntheticRun
from upl_ray.artifacts import Store
from upl_ray.report.compare import differences, write_comparison


def _predicted(store: Store) -> list[dict[str, Any]]:
    return [r for rows in commits_of(store, Path(store.read_json("run.json")["predictions"]).name) for r in rows]


def test_runs_are_compared_image_by_image(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b", "<b>c"), tuple(f"{i}.png" for i in range(12)))
    made = [
        SyntheticRun(tmp_path / f"run{i}", tmp_path / "images", ("a", "b", "<b>c"), ("upl",), top_k=4 + i, seed=i)
        for i in range(2)
    ]
    stores = [m.write() for m in made]
    address = write_comparison(stores)
    page = Path(address).read_text()
    tables = [{r["image_id"]: r["label"] for r in _predicted(s)} for s in stores]
    ids = tables[0].keys() & tables[1].keys()
    same = sum(tables[0][i] == tables[1][i] for i in ids) / len(ids)
    text = " ".join("".join(Seen(page).text).split())
    assert f"On {len(ids)} images of both (corpus) they give the same label to {100 * same:.1f} %" in text
    right = [sum(("a", "b", "<b>c")[t[i]] == i.split("/")[0] for i in ids) for t in tables]
    assert f"{100 * (right[1] - right[0]) / len(ids):+.1f} points" in text
    assert "label.top_k" in text


def test_images_of_the_same_name_are_compared_only_in_the_same_version(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b"), tuple(f"{i}.png" for i in range(12)))
    stores = []
    for i in range(2):
        stores.append(SyntheticRun(tmp_path / f"run{i}", tmp_path / "images", ("a", "b"), ("upl",), top_k=4).write())
        for j in range(5):  # retouched after the first run
            Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a" / f"{j}.png")
    text = " ".join("".join(Seen(Path(write_comparison(stores)).read_text()).text).split())
    assert "5 images of the same name are other files in the two runs" in text
    assert "On 19 images of both (corpus) they give the same label to 100.0 %" in text


def test_classes_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    """As ImageNet's cranes, a bird and a machine: a label of the other one is another label, and a wrong one."""
    names = ("crane", "crane", "cat")
    write_images(tmp_path / "images", ("0", "1", "2"), tuple(f"{i}.png" for i in range(20)))
    stores = [
        SyntheticRun(tmp_path / f"run{i}", tmp_path / "images", names, ("upl",), seed=i).write() for i in range(2)
    ]
    page = Path(write_comparison(stores)).read_text()
    text = " ".join("".join(Seen(page).text).split())
    tables = [{r["image_id"]: r["label"] for r in _predicted(s)} for s in stores]
    same = sum(tables[1][i] == label for i, label in tables[0].items())
    by_name = sum(names[tables[1][i]] == names[label] for i, label in tables[0].items())
    right = [sum(label == int(i.split("/")[0]) for i, label in table.items()) for table in tables]
    assert same < by_name
    assert f"On 60 images of both (corpus) they give the same label to {100 * same / 60:.1f} %" in text
    assert f"{100 * (right[1] - right[0]) / 60:+.1f} points" in text


def test_classes_in_another_order_are_told_apart_by_their_names(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b", "c"), tuple(f"{i}.png" for i in range(20)))
    orders = (("a", "b", "c"), ("c", "a", "b"))
    stores = [
        SyntheticRun(tmp_path / f"run{i}", tmp_path / "images", names, ("upl",), seed=i).write()
        for i, names in enumerate(orders)
    ]
    text = " ".join("".join(Seen(Path(write_comparison(stores)).read_text()).text).split())
    named = [{r["image_id"]: o[r["label"]] for r in _predicted(s)} for s, o in zip(stores, orders, strict=True)]
    same = sum(named[1][i] == name for i, name in named[0].items())
    assert f"On 60 images of both (corpus) they give the same label to {100 * same / 60:.1f} %" in text


def test_only_fields_that_differ_are_listed() -> None:
    configs = {"A": {"x": 1, "s": {"y": 2, "z": [1]}}, "B": {"x": 1, "s": {"y": 3, "z": [1]}, "new": True}}
    assert differences(configs) == [["s.y", "2", "3"], ["new", "–", "True"]]
