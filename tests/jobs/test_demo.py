"""The embedded demo, whole: what the README says of it is what comes out."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chromium import LOOKS, filter_to_one_class, look_around, needs_chromium, opened

from upl_ray.config.cli import load_config
from upl_ray.demo.digits import CLASSNAMES
from upl_ray.demo.locate import BACKBONES
from upl_ray.pipeline.main import run
from upl_ray.pipeline.summary import headline, results_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
HOW_IT_WORKS = (ROOT / "docs" / "how-it-works.md").read_text()


@pytest.fixture(scope="module")
def demo(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The demo exactly as configured, in a folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    before = Path.cwd()
    os.chdir(folder)
    try:
        two_trials = ["--compute.trials", "2"]  # as on two cores; the grouping changes nothing beyond rounding
        return run(load_config(two_trials, default=ROOT / "jobs" / "demo.yaml"))
    finally:
        os.chdir(before)


def accuracy(demo: dict[str, Any], step: str, variant: str, name: str) -> float:
    return float(demo["scores"][variant][step]["scored"]["accuracy"][name])


def test_the_ensemble_beats_the_target_by_three_points(demo: dict[str, Any]) -> None:
    zero_shot = accuracy(demo, "zero_shot", "upl*", demo["target"])
    assert accuracy(demo, "predictions", "upl*", "ensemble") >= zero_shot + 0.03


def imbalance(counts: list[int]) -> float:
    """Images of the largest class over those of the smallest."""
    return max(counts) / min(counts) if min(counts) else float("inf")


def test_fused_labels_are_more_precise_and_top_k_is_more_balanced(demo: dict[str, Any]) -> None:
    fused, own = demo["scores"]["upl*"], demo["scores"]["upl"]
    assert fused["selection"]["precision"] > own["selection"]["precision"]
    assert demo["starved_classes"] == own["selection"]["starved"] == []
    for scores in (fused, own):
        threshold = scores["zero_shot"]["corpus"]["threshold"]["images_per_class"]
        assert imbalance(scores["selection"]["images_per_class"]) < imbalance(threshold)


def test_the_documents_show_the_table_that_comes_out(demo: dict[str, Any]) -> None:
    def numbers(line: str) -> list[float]:
        return [float(x) for x in re.findall(r"\d+(?:\.\d+)?", line.split("  ", 1)[1])]

    for line in results_table(demo).splitlines():
        title = line[:32].rstrip()
        if title and "%" in line and "each member" not in line:
            (shown,) = [r for r in HOW_IT_WORKS.splitlines() if r.strip().startswith(title)]
            # Machines differ in the last bits of a sum: one image is 0.22 points.
            assert numbers(shown.strip()) == pytest.approx(numbers(line), abs=1.0), line
    (template,) = re.findall(r"^\| template, .* \| ([\d.]+) % \| \|$", README, re.M)
    (learned,) = re.findall(r"^\| UPL.* \| ([\d.]+) % \| \*\*([\d.]+) %\*\* \|$", README, re.M)
    expected = [accuracy(demo, "zero_shot", "upl*", n) for n in (demo["target"], "fused")]
    expected.append(accuracy(demo, "predictions", "upl*", "ensemble"))
    assert [float(c) / 100 for c in (template, *learned)] == pytest.approx(expected, abs=0.01)
    assert results_table(demo).count("UPL*") >= 4
    assert "starved" in results_table(demo)


def test_images_that_no_accuracy_is_over_are_told(demo: dict[str, Any]) -> None:
    some = copy.deepcopy(demo)
    some["scores"]["upl*"]["predictions"]["corpus"]["labeled"] -= 100
    assert "on corpus: 1252 of 1352 images count: with a class as label, not corrected" in results_table(some)
    assert "images count" not in results_table(demo)


def test_the_headline_is_one_json_line_with_counts_and_accuracies(demo: dict[str, Any]) -> None:
    line = json.dumps(headline(demo))
    assert "\n" not in line
    said = json.loads(line)
    assert said["images"] == 1352
    assert said["rejected"] == 0
    assert set(said["accuracy"]) == {
        "zero_shot",
        "upl* zero_shot fused",
        "upl* ensemble",
        "upl zero_shot fused",
        "upl ensemble",
        "refined labels",
        "refined ensemble",
        "refined classes even",
    }


@needs_chromium
@pytest.mark.parametrize("look", LOOKS)
def test_its_report_can_be_used_and_read_in_a_browser(demo: dict[str, Any], tmp_path: Path, look: str) -> None:
    with opened(Path(demo["report"]), look) as page:
        look_around(page, tmp_path, look)
        filter_to_one_class(page)


def test_its_report_is_rebuilt_from_storage_alone(demo: dict[str, Any]) -> None:
    page = Path(demo["report"])
    before = page.read_bytes()
    page.unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "jobs/report.py", demo["storage"]]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert page.read_bytes() == before
    assert before.count(b'<article class="card"') == 30  # ten classes, three variants


def test_the_weights_are_small(demo: dict[str, Any]) -> None:
    assert sum(p.stat().st_size for p in BACKBONES.rglob("*") if p.is_file()) < 6e6


def test_the_ten_lines_of_the_documents_classify_with_open_clip_alone(demo: dict[str, Any]) -> None:
    code = re.search(r"tested by tests/jobs/test_demo.py -->\n```python\n(.*?)```", HOW_IT_WORKS, re.S)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line and "import" not in line]) <= 10
    scored = Path(demo["storage"]).parent / "digits" / "scored"
    images = [sorted((scored / name).iterdir())[0] for name in ("zero", "four", "nine")]
    from PIL import Image

    from upl_ray.upl.classifier import load_classifier

    expected, _ = load_classifier(demo["classifier"]).predict([Image.open(p) for p in images])
    for path, label in zip(images, expected, strict=True):
        program = code[1].replace("upl-demo/run/", "").replace("upl_ray/demo/backbones", str(BACKBONES))
        program = re.sub(r'"upl-demo/digits.*?"', repr(str(path)), program)
        result = subprocess.run(
            [sys.executable, "-c", program], cwd=demo["storage"], capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == label


def test_the_other_snippets_of_the_documents_run_in_the_demo_s_folder(demo: dict[str, Any]) -> None:
    folder = Path(demo["storage"]).parent.parent
    (classify,) = re.findall(r"```python\n(.*?)```", README, re.S)
    image = sorted((folder / "upl-demo/digits/scored/three").iterdir())[0]
    classify = classify.replace("upl-run", "upl-demo/run").replace("photos/a.jpg", str(image))
    read = next(c for c in re.findall(r"```python\n(.*?)```", HOW_IT_WORKS, re.S) if "predictions = " in c)
    programs = {f"{read}\nprint(predictions.num_rows)": ("1352",), f"{classify}\nprint(*labels)": CLASSNAMES}
    for program, answers in programs.items():
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert result.stdout.strip() in answers
