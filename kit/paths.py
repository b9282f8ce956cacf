"""Where the kit keeps what it hands out: the project template and the slash commands.

A checkout has them once, at the repository root. A built wheel carries copies under ``kit/bundled`` (see the
force-include table in pyproject.toml). Everything else asks here and does not care which of the two it runs from.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def template_dir() -> Path:
    """Return the Copier template of a PyTorch project: the folder that holds ``copier.yml`` and ``template/``."""
    return _find("templates/pytorch_project")


def project_files() -> Path:
    """Return the files of a project as the template has them, unrendered."""
    return template_dir() / "template"


def commands_dir() -> Path:
    """Return the folder of slash commands, one Markdown file each."""
    return _find("commands", in_checkout=".claude/commands")


def _find(name: str, *, in_checkout: str | None = None) -> Path:
    bundled = _PACKAGE / "bundled" / name
    # The wheel's copy wins where there is one: beside an installed package, an unrelated folder may have the name.
    return bundled if bundled.is_dir() else _PACKAGE.parent / (in_checkout or name)
