"""The command line: files, overrides, and every refusal as one sentence with an exit status."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from upl_ray.config.cli import load_config, load_predict, run_job
from upl_ray.config.redact import reject_secrets
from upl_ray.config.settings import Config
from upl_ray.errors import ConfigError, JobError

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {
    "corpus": {"uri": "/images"},
    "classnames": ["cat", "dog"],
    "backbones": ["RN50/openai"],
    "storage_path": "/results",
}


def read(tmp_path: Path, *args: str, **changes: Any) -> Config:
    """Load GOOD with changes through a YAML file and command-line arguments."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    return load_config([str(tmp_path / "job.yaml"), *args], default=tmp_path / "none.yaml")


def refusal(tmp_path: Path, text: str | bytes) -> str:
    (tmp_path / "job.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as error:
        load_config([str(tmp_path / "job.yaml")], default=tmp_path / "none.yaml")
    assert str(error.value).startswith(str(tmp_path / "job.yaml"))
    assert str(error.value).isprintable()
    return str(error.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml' does not exist.*default\.yaml"):
        load_config([str(tmp_path / "nope.yaml")], default=tmp_path / "default.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classnames": 12}, "classnames: it should be text or a list; it is 12."),
        ({"variants": "upl"}, "variants: it should be a list; it is 'upl'."),
        ({"corpus": "photos"}, "corpus: it should be `field: value` pairs; it is 'photos'."),
        ({"label": {"corrections": ["a.csv", 2]}}, "label.corrections.1: it should be text; it is 2."),
        ({"target": "ViT-B"}, "target 'ViT-B' is none of the backbones ['RN50-openai']; name one of them."),
        ({"on_worse": "x" * 99}, f"on_worse: it should be 'warn' or 'stop'; it is '{'x' * 36} ... {'x' * 36}'."),
    ],
)
def test_a_refused_value_gives_one_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, **change)
    assert str(error.value) == f"{tmp_path / 'job.yaml'}: {sentence}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("corpus: [unclosed", "is not YAML: expected ',' or ']'.* (line 1, column 18)"),
        ("a: b: c", "mapping values are not allowed here (line 1, column 5)"),
        ("storage_path: x\n\ttrain: x", "is not YAML"),
        ("corpus: !!python/object/apply:os.system ['touch marker']", "could not determine a constructor"),
        ("a: *c", "undefined alias 'c' (line 1, column 4)"),
        ("? {a: b}\n: c", "unhashable key"),
        *((text, "the name of a field is no text; put it in quotes") for text in ("1: 2", "corpus: {2: x}")),
        ("corpus: \x07", "special characters are not allowed"),
        ("label: {top_k: 3, top_k: 4}", "'top_k' is given twice; keep one of them (line 1, column 19)"),
        *((text, "holds no `field: value` pairs; start from") for text in ("- a\n- b", "just text", "5", "", "null")),
        (b"\xff\xfe\x00c", "is not UTF-8 (byte 1); save it in that encoding"),
        ("storage_path: é".encode("latin-1"), "is not UTF-8 (byte 15)"),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_what_is_no_mapping_of_fields_is_refused_in_one_line(text: str | bytes, words: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, text)
    assert [w for w in words.split(".*") if w not in message] == []
    assert not (Path.cwd() / "marker").exists()


@pytest.mark.parametrize(
    "text",
    [
        'corpus: {uri: "s3://KEY:%s@bucket/p" labels: folders}',
        'corpus: {uri: "s3://KEY:%s@bucket/p}',
        "corpus: {uri: s3://KEY:%s@bucket/p, labels: folders]",
        "storage_path: !s3://KEY:%s@bucket/p x",
        "corpus: s3://KEY:%s@bucket/p: x",
        "s3://KEY:%s@bucket/p: x",
    ],
)
def test_a_file_that_is_no_yaml_repeats_no_part_of_a_secret(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    parts = [f"{i:03d}Secret/" for i in range(12)]
    (tmp_path / "job.yaml").write_text(text % "".join(parts))
    assert run_job(lambda: bool(load_config([str(tmp_path / "job.yaml")], tmp_path))) == 2
    printed = "".join(capsys.readouterr())
    assert "job.yaml" in printed
    assert [p for p in parts if p in printed] == []


def test_dates_are_text(tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text("{classifier: 2024-02-30, corpus: {uri: [2024-01-01, 2024-01-01 10:00:00]}}")
    job = load_predict([str(tmp_path / "night.yaml")], tmp_path)
    assert (job.classifier, *job.corpus.uris) == ("2024-02-30", "2024-01-01", "2024-01-01 10:00:00")


CHANGED = [
    "001",
    "010",
    "1_000",
    "1.50",
    "0x10",
    "1:30",
    "+1",
    ".5",
    ".inf",
    "yes",
    "No",
    "on",
    "true",
    "null",
    "~",
    "",
]


@pytest.mark.parametrize("name", CHANGED)
def test_class_names_that_yaml_changes_are_refused_and_in_quotes_they_are_kept(name: str, tmp_path: Path) -> None:
    text = yaml.safe_dump({**GOOD, "classnames": []}).replace("classnames: []", "classnames:\n- cat\n- {}")
    message = refusal(tmp_path, text.format(name))
    assert f"YAML reads the name {name!r} as " in message
    assert message.endswith("; put it in quotes.")
    (tmp_path / "job.yaml").write_text(text.format(f"'{name}'"))
    assert load_config([str(tmp_path / "job.yaml")], tmp_path).classnames == ("cat", name)
    words = yaml.safe_dump({**GOOD, "label": {"negatives": []}}).replace("negatives: []", "negatives:\n  - {}")
    assert f"YAML reads the name {name!r} as " in refusal(tmp_path, words.format(name))


def test_class_names_that_yaml_leaves_as_they_stand_are_text(tmp_path: Path) -> None:
    names = ("1", "2024", "-3", "1.5", "1.0", "2020-01-01", "1e3", "0o17", "a b", "犬", "no way")
    text = yaml.safe_dump({**GOOD, "classnames": []}).replace("[]", f"[{', '.join(names)}]")
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    assert load_config([str(tmp_path / "job.yaml")], tmp_path).classnames == names


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("load_config(['--help'], Path('jobs/demo.yaml'))", 128 + signal.SIGPIPE, ""),
        ("print('x' * 200_000)", 128 + signal.SIGPIPE, ""),
        ("print('x')", 128 + signal.SIGPIPE, ""),
        ("load_config(['none.yaml'], Path('x'))", 2, "error: The configuration file 'none.yaml' does not exist;"),
        ("exec('raise JobError(1)')", 1, "error: 1"),
    ],
)
def test_output_into_a_closed_pipe_ends_without_a_traceback(body: str, status: int, error: str) -> None:
    code = (
        "import sys; from pathlib import Path; from upl_ray.config.cli import *\n"
        f"sys.stdin.read(); sys.exit(run_job(lambda: {body} or 0))"
    )
    pipe, command = subprocess.PIPE, [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, text=True) as job:
        job.stdout.close()
        job.stdin.close()
        printed = job.stderr.read()
    assert job.returncode == status
    assert printed.startswith(error)
    assert printed.count("\n") == bool(error)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("load_config(['none.yaml'], Path('x'))", 2, "error: The configuration file 'none.yaml' does not exist;"),
        ("print('x' * 200_000)", 1, "error: A file cannot be read or written ([Errno 28] No space left on device);"),
        ("print('x')", 1, "error: A file cannot be read or written ([Errno 28] No space left on device);"),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_onto_a_full_disk_ends_without_a_traceback(
    body: str, status: int, error: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    code = (
        "import sys; from pathlib import Path; from upl_ray.config.cli import *\n"
        f"sys.exit(run_job(lambda: {body} or 0))"
    )
    with open("/dev/full", "w") as full:
        job = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True)
        assert job.returncode == status
        assert job.stderr.startswith(error)
        assert job.stderr.count("\n") == 1
        assert subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full, cwd=ROOT).returncode == status


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_file_that_is_opened_later(closed: str, tmp_path: Path) -> None:
    code = (
        "import faulthandler; from upl_ray.config.cli import *\n"
        "def job():\n"
        "    with open('x', 'w') as file:\n"
        "        os.write(1, b'no'), os.write(2, b'no'), print('no'), faulthandler.enable()\n"  # the last as Ray does
        "        return file.fileno() <= 2\n"
        "sys.exit(run_job(job))"
    )
    command = ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x").read_bytes() == b""


def test_another_broken_pipe_is_a_failed_job(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise BrokenPipeError(32, "Broken pipe", "a socket")

    assert run_job(body) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "failed"


def run_in_ascii(code: str, *arguments: str) -> str:
    """Output of a program in a locale that knows ASCII alone."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=os.environ | plain, capture_output=True, check=True)
    assert not done.stderr
    return done.stdout.decode()


def test_files_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    text = yaml.safe_dump({**GOOD, "classnames": ["bär", "犬"]}, allow_unicode=True)
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "names.txt").write_text("bär\n犬\n", encoding="utf-8")
    code = (
        "import locale, sys; from pathlib import Path; from upl_ray.config.cli import load_config\n"
        "from upl_ray.storage.store import read_text\n"
        "names = load_config(sys.argv[1:2], Path('x')).classnames\n"
        "print(locale.getpreferredencoding(False))\n"
        "print(ascii(names), ascii(read_text(sys.argv[2]).split()))\n"
    )
    encoding, names = run_in_ascii(code, str(tmp_path / "job.yaml"), str(tmp_path / "names.txt")).splitlines()
    assert "utf" not in encoding.lower()
    assert names == f"{('bär', '犬')!a} {['bär', '犬']!a}"


def test_names_of_files_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "bär 犬").mkdir()
    code = (
        "import sys; from pathlib import Path; from upl_ray.config.cli import run_job\n"
        "sys.exit(run_job(lambda: print(*(p.name for p in Path(sys.argv[1]).iterdir())) or 0))"
    )
    assert run_in_ascii(code, str(tmp_path)) == "bär 犬\n"


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, "--train.epochs", "7", "--train.n-ctx", "4", train={"epochs": 3, "members": 2})
    assert (config.train.epochs, config.train.n_ctx, config.train.members) == (7, 4, 2)
    assert read(tmp_path, "--classnames", "a", "b").classnames == ("a", "b")
    backbone = read(tmp_path, "--backbones.0.pretrained", "yfcc15m").target_backbone
    assert backbone.label == "RN50-yfcc15m"
    pools = {"RN50-openai": {"accelerator_type": "T4", "label_selector": {"zone": "!spot"}}}
    pool = read(tmp_path, "--compute.pools.RN50-openai.gpus", "0.5", compute={"pools": pools}).compute.pools
    assert pool["RN50-openai"].model_dump() == {**pools["RN50-openai"], "gpus": 0.5, "max_actors": None}


def test_the_nightly_job_takes_two_places_or_a_file(tmp_path: Path) -> None:
    job = load_predict(["/run", "/images", "--max-rejected", "0.5"], tmp_path)
    assert (job.classifier, job.corpus.uri, job.max_rejected) == ("/run", "/images", 0.5)
    (tmp_path / "night.yaml").write_text("{classifier: /run, corpus: {uri: /images}}")
    assert load_predict([str(tmp_path / "night.yaml")], tmp_path) == load_predict(["/run", "/images"], tmp_path)
    with pytest.raises(ConfigError, match="alone is not enough; name a classifier and a corpus"):
        load_predict(["/run"], tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--train.epochs", v) for v in ("0", "-1", "1.5", "many", "", "\x1b[31m")),
        *(("--train.lr", v) for v in ("0", "nan", "inf", "fast")),
        ("--label.max-rejected", "2"),
        ("--keep-features", "some"),
        ("--train.n-such-field", "1"),
        ("--views.crop-scale", "1"),
    ],
)
def test_wrong_options_end_with_status_2_and_their_name(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ConfigError, SystemExit)) as refused:
        read(tmp_path, option, value)
    assert isinstance(refused.value, ConfigError) or refused.value.code == 2
    message = f"{refused.value} {capsys.readouterr().err}"
    assert option.rpartition(".")[2].lstrip("-").replace("-", "_") in message.replace("-", "_")


@pytest.mark.parametrize("args", [["s3://KEY:secret@bucket"], ["run", "--storage-path=s3://KEY:secret@bucket"]])
def test_secrets_on_the_command_line_are_refused_and_not_repeated(args: list[str], tmp_path: Path) -> None:
    for refuse in (reject_secrets, lambda a: load_config(a, tmp_path), lambda a: load_predict(a, tmp_path)):
        with pytest.raises(ConfigError, match=r"^An argument holds credentials; ") as error:
            refuse(args)
        assert "secret" not in str(error.value)


def test_errors_and_log_lines_move_no_cursor_and_hold_no_secret(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("upl_ray"), "level", logging.INFO)
    nasty = "\x1b]0;title\x07 \r\x9b2J \u202ereversed\u2028 s3://KEY:aB3/xY@bucket/x https://host/x?sig=aB3/xY"

    def body() -> int:
        logging.getLogger("upl_ray.test").warning("%s", nasty)
        raise JobError(nasty)

    assert run_job(body) == 1
    out, err = capfd.readouterr()
    for text in (out, err):
        assert not set("\x1b\x07\r\x9b\u202e\u2028") & set(text)
        assert "aB3/xY" not in text
        assert "reversed" in text
    assert len(err.splitlines()) == 2
    assert json.loads(out)["status"] == "failed"


def test_neither_torch_nor_ray_is_loaded_for_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**GOOD, "train": {"epochs": 0}}))
    code = (
        "import sys; from pathlib import Path\n"
        "from upl_ray.config.cli import load_config, run_job\n"
        f"status = run_job(lambda: load_config([{str(tmp_path / 'job.yaml')!r}], Path('x')) and 0)\n"
        "print(status, sorted({'torch', 'ray', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1].split() == ["2", "[]"], done.stderr
    assert "epochs" in done.stderr


def test_a_stop_inside_of_an_exec_keeps_its_status(tmp_path: Path) -> None:
    """As when a library that builds code is being imported: Python would end by SIGINT at the plain exception."""
    body = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nfor _ in range(10**6): pass"
    (tmp_path / "module.py").write_text(
        f"import sys\nfrom upl_ray.config.cli import run_job\n\ndef job():\n    exec({body!r})\n    return 0\n\n"
        "sys.exit(run_job(job))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-m", "module"], env=environment, capture_output=True, text=True)
    assert done.returncode == 143
    assert json.loads(done.stdout)["status"] == "stopped"


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = Path.cwd()
    (tmp_path / "gone").mkdir()
    try:
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert run_job(lambda: 0) == 2
    finally:
        os.chdir(here)
    assert "The working folder has been removed; change into another one." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "variables", "status", "words"),
    [
        (["-OO"], {}, 2, "Ray cannot be imported without docstrings; unset PYTHONOPTIMIZE"),
        ([], {"PYTHONOPTIMIZE": "2"}, 2, "unset PYTHONOPTIMIZE"),
        ([], {"PYTHONWARNINGS": "error"}, 0, "''\n"),  # not passed on: Ray's processes would die of their warnings
        ([], {"PYTHONWARNINGS": "ignore:an error,error::UserWarning"}, 0, "ignore:an error\n"),
    ],
)
def test_odd_variables_of_python_are_refused_or_not_passed_on(
    options: list[str], variables: dict[str, str], status: int, words: str
) -> None:
    script = (
        "import os, sys; from upl_ray.config.cli import run_job\n"
        "def job():\n    print(os.environ.get('PYTHONWARNINGS') or repr(''))\n    return 0\n"
        "sys.exit(run_job(job))"
    )
    command = [sys.executable, *options, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == status, done.stderr
    assert words in done.stdout


def test_the_backend_of_a_notebook_does_not_reach_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys; from upl_ray.config.cli import run_job\n"
        "def job():\n    import matplotlib\n    print(matplotlib.get_backend())\n    return 0\n"
        "sys.exit(run_job(job))"
    )
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip().lower(), done.returncode) == ("agg", 0), done.stderr
