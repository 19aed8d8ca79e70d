"""Turns `demo:` names into folders: `demo:digits/corpus` and `demo:NAME` of a backbone."""

from pathlib import Path

from upl_ray.storage.store import absolute

BACKBONES = Path(__file__).parent / "backbones"
DIGITS, LETTERS = Path("upl-demo") / "digits", Path("upl-demo") / "letters"


def settings(name: str) -> Path:
    """The demo's configuration of a job, `demo.yaml` or `predict.yaml`; an installed package brings them along."""
    installed = Path(__file__).parent / name
    return installed if installed.is_file() else Path(__file__).parents[2] / "jobs" / name


def images(uri: str) -> str:
    """Absolute address of a corpus; `demo:...` is a folder beside the working directory, written when absent."""
    if not uri.startswith("demo:"):
        return absolute(uri)
    if uri == "demo:letters":
        from upl_ray.demo.letters import write_letters  # with matplotlib, for its fonts

        write_letters(LETTERS)
        return str(LETTERS.resolve())
    part = uri.removeprefix("demo:digits/")
    if part not in ("corpus", "scored"):
        raise ValueError(
            f"There is no demo corpus {uri!r}; use demo:digits/corpus, demo:digits/scored or demo:letters."
        )
    from upl_ray.demo.digits import write_digits  # scikit-learn takes a second to import; only the demo needs it

    write_digits(DIGITS)
    return str((DIGITS / part).resolve())


def backbone(model: str) -> str:
    """`demo:NAME` -> open_clip's `local-dir:` of the committed weights; other model names unchanged."""
    if not model.startswith("demo:"):
        return model
    folder = BACKBONES / model.removeprefix("demo:")
    if not folder.is_dir():
        names = sorted(p.name for p in BACKBONES.iterdir())
        raise ValueError(f"there is no demo backbone {model!r}; use one of {['demo:' + n for n in names]}")
    return f"local-dir:{folder}"
