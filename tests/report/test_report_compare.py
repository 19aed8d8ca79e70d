"""Two runs on one page."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from report_pages import MakeRun, commits_of, text_of, write_images

from upl_ray.corpus.corrections import find_corrections
from upl_ray.report.compare import differences, write_comparison
from upl_ray.report.finished import open_run
from upl_ray.storage.store import Store


def compared(stores: list[Store]) -> str:
    return text_of(Path(write_comparison(stores)).read_text())


def predicted(store: Store) -> dict[str, int]:
    commits = commits_of(store, Path(store.read_json("run.json")["predictions"]).name)
    return {r["image_id"]: r["label"] for rows in commits for r in rows}


def numbered(n: int) -> tuple[str, ...]:
    return tuple(f"{i}.png" for i in range(n))


def test_runs_are_compared_image_by_image(make_run: MakeRun) -> None:
    names = ("a", "b", "<b>c")
    runs = [make_run(names, numbered(12), f"run{i}", top_k=4 + i, seed=i) for i in range(2)]
    stores = [run.write() for run in runs]
    text = compared(stores)
    tables = [predicted(s) for s in stores]
    ids = tables[0].keys() & tables[1].keys()
    same = sum(tables[0][i] == tables[1][i] for i in ids) / len(ids)
    assert f"On {len(ids)} images of both (corpus) they give the same label to {100 * same:.1f} %" in text
    right = [sum(names[t[i]] == i.split("/")[0] for i in ids) for t in tables]
    assert f"{100 * (right[1] - right[0]) / len(ids):+.1f} points" in text
    assert "label.top_k" in text


def test_images_of_the_same_name_are_compared_only_in_the_same_version(tmp_path: Path, make_run: MakeRun) -> None:
    stores = []
    for i in range(2):
        stores.append(make_run(("a", "b"), numbered(12), f"run{i}").write())
        for j in range(5):  # retouched after the first run
            Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a" / f"{j}.png")
    text = compared(stores)
    assert "5 images of the same name are other files or other versions in the two runs" in text
    assert "On 19 images of both (corpus) they give the same label to 100.0 %" in text


def test_classes_of_the_same_name_are_different_classes(make_run: MakeRun, tmp_path: Path) -> None:
    """As ImageNet's cranes, a bird and a machine: a label of the other one is another label, and a wrong one."""
    names = ("crane", "crane", "cat")
    write_images(tmp_path / "images", ("0", "1", "2"), numbered(20))
    stores = [make_run(names, folder=f"run{i}", seed=i).write() for i in range(2)]
    text = compared(stores)
    tables = [predicted(s) for s in stores]
    same = sum(tables[1][i] == label for i, label in tables[0].items())
    by_name = sum(names[tables[1][i]] == names[label] for i, label in tables[0].items())
    right = [sum(label == int(i.split("/")[0]) for i, label in table.items()) for table in tables]
    assert same < by_name
    assert f"On 60 images of both (corpus) they give the same label to {100 * same / 60:.1f} %" in text
    assert f"{100 * (right[1] - right[0]) / 60:+.1f} points" in text


def test_classes_in_another_order_are_compared_by_their_names(make_run: MakeRun) -> None:
    orders = (("a", "b", "c"), ("c", "a", "b"))
    stores = [make_run(names, numbered(20), f"run{i}", seed=i).write() for i, names in enumerate(orders)]
    text = compared(stores)
    named = [{i: o[label] for i, label in predicted(s).items()} for s, o in zip(stores, orders, strict=True)]
    same = sum(named[1][i] == name for i, name in named[0].items())
    assert f"On 60 images of both (corpus) they give the same label to {100 * same / 60:.1f} %" in text


def test_images_that_a_person_corrected_before_either_run_are_not_scored(make_run: MakeRun) -> None:
    names = ("a", "b", "c")
    stores = [make_run(names, numbered(12), f"run{i}", seed=i).write() for i in range(2)]
    tables = [predicted(s) for s in stores]
    wrong = [i for i, label in tables[0].items() if names[label] != i.split("/")[0]][:5]
    step = find_corrections(stores[1], open_run(stores[1].uri).corpora["corpus"], dict.fromkeys(wrong, (0, "row 1")))
    assert step
    assert len(wrong) > 1
    summary = stores[1].read_json("run.json")
    summary["folders"]["corrections"] = step.folder
    stores[1].write_json("run.json", summary)
    for pair in (stores, stores[::-1]):
        text = compared(pair)
        left = tables[0].keys() - wrong
        right = [sum(names[predicted(s)[i]] == i.split("/")[0] for i in left) for s in pair]
        assert f"Of {len(left)} with a true label that nobody has corrected ({len(wrong)} were), B" in text
        assert f"{100 * (right[1] - right[0]) / len(left):+.1f} points" in text


def test_only_fields_that_differ_are_listed() -> None:
    configs = {"A": {"x": 1, "s": {"y": 2, "z": [1]}}, "B": {"x": 1, "s": {"y": 3, "z": [1]}, "new": True}}
    assert differences(configs) == [["s.y", "2", "3"], ["new", "–", "True"]]
