"""Makes a project from the template: what ``kit new`` does.

The template is given to Copier as a plain folder, so the new ``.copier-answers.yml`` records the answers and where
the template lay, but no ``_commit``: there is no repository to update from. `copier update` works after the project
has adopted the kit's repository once, which changes no file but the answers file:

    copier copy --defaults --skip '*' --skip '!/.copier-answers.yml' --vcs-ref v<kit version> <git address of the kit> .

A project made with ``copier copy <git address of the kit>`` can be updated at once. tests/test_scaffold.py tries both.
"""

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kit.paths import template_dir


class ScaffoldError(Exception):
    """A project could not be made; ``str()`` of it is one sentence for the user."""


def new_project(
    dest: Path,
    *,
    model: str | None = None,
    dataset: str | None = None,
    config: str | None = None,
    tracker: str | None = None,
    deploy: bool = False,
    data: Mapping[str, str] | None = None,
) -> Path:
    """Make a project in `dest` without asking anything, and return its absolute path.

    Args:
        dest: A folder that does not exist, is empty, or holds nothing but ``.git``. Missing parents are made.
        model: Answer to the template's question of this name; None takes the template's default. The same for
            `dataset`, `config` and `tracker`. ``questions()`` lists what is offered.
        deploy: Whether to add what serves the model.
        data: Further answers by name, for example ``{"project_name": "Digits"}``.

    Raises:
        ScaffoldError: An answer is unknown or not offered, or `dest` cannot be written. Nothing has been left behind.
    """
    given = {"model": model, "dataset": dataset, "config": config, "tracker": tracker, "deploy": deploy or None}
    answers = _merge({name: value for name, value in given.items() if value is not None}, dict(data or {}))
    dest = Path(dest).resolve()
    _check_answers(answers, default_name=dest.name)
    try:
        _check_destination(dest)
        _render_then_move(dest, answers)
    except OSError as error:
        raise ScaffoldError(f"{dest}: cannot write here ({error.strerror or error}); choose another folder") from error
    return dest


def questions() -> dict[str, list[str]]:
    """Return the template's questions, each with the values it offers (an empty list: any text)."""
    config = yaml.safe_load((template_dir() / "copier.yml").read_text(encoding="utf-8"))
    return {
        name: list(entry.get("choices", {}).values())
        for name, entry in config.items()
        if not name.startswith("_") and entry.get("when") is not False
    }


def _merge(options: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    for name in options.keys() & data.keys():
        if options[name] != data[name]:
            raise ScaffoldError(f"{name} is given twice: {options[name]} and, with --data, {data[name]}; keep one")
    return {**options, **data}


def _check_answers(answers: Mapping[str, Any], *, default_name: str) -> None:
    asked = questions()
    for name, value in answers.items():
        if name not in asked:
            raise ScaffoldError(f"{name}: the template has no such question; it asks for {', '.join(asked)}")
        if asked[name] and value not in asked[name]:
            raise ScaffoldError(f"{name}={value}: not offered by the template; choose one of {', '.join(asked[name])}")
    project_name = answers.get("project_name", default_name)
    if not (project_name.strip() and project_name.isprintable()):
        raise ScaffoldError("project_name: must be one line of printable text")


def _check_destination(dest: Path) -> None:
    if dest.exists() and not dest.is_dir():
        raise ScaffoldError(f"{dest}: is a file; choose a folder that is empty or does not exist")
    # A folder fresh from `git init` or from cloning an empty repository counts as empty.
    if dest.is_dir() and any(child.name != ".git" for child in dest.iterdir()):
        raise ScaffoldError(f"{dest}: exists and is not empty; choose a folder that is empty or does not exist")


def _render_then_move(dest: Path, answers: Mapping[str, Any]) -> None:
    """Render into a temporary folder on the same disk, then put the result in place by renaming.

    So a full disk, Ctrl-C or a fault of the template leaves `dest` as it was.
    """
    nearest = next(path for path in (dest, *dest.parents) if path.exists())
    staging = Path(tempfile.mkdtemp(prefix=".kit-new-", dir=nearest))
    try:
        rendered = staging / dest.name
        _render(rendered, answers)
        if dest.exists():
            _move_children(rendered, dest)
        else:
            dest.parent.mkdir(parents=True, exist_ok=True)
            rendered.rename(dest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_children(source: Path, dest: Path) -> None:
    """Fill `dest` without replacing it: it may be the shell's current folder, or a mount point."""
    moved: list[Path] = []
    try:
        for child in sorted(source.iterdir()):
            child.rename(dest / child.name)
            moved.append(child)
    except BaseException:
        for child in moved:
            (dest / child.name).rename(child)
        raise


def _render(folder: Path, answers: Mapping[str, Any]) -> None:
    import copier
    import jinja2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Copier's remarks are about its own settings and mean nothing here
        try:
            copier.run_copy(
                str(template_dir()),
                folder,
                data=dict(answers),
                defaults=True,
                quiet=True,
                settings=copier.Settings(),  # the user's own could give other defaults, or be broken
            )
        except (copier.errors.CopierError, jinja2.TemplateError, ValueError) as error:
            raise ScaffoldError(f"the template could not be rendered: {' '.join(str(error).split())}") from error
