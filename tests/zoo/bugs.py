"""All bugs that are planted in the zoo's programs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .model import Bug

MODULES = [
    import_module(f"{__package__}.patches.{path.stem}")
    for path in sorted((Path(__file__).parent / "patches").glob("[!_]*.py"))
]
BUGS: list[Bug] = [bug for module in MODULES for bug in module.BUGS]
