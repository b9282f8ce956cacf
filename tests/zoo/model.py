"""What the zoo is made of: healthy programs, bugs planted in them, and healthy variations of them.

A bug and a variation are patches: exact replacements of text in a copy of a program. A patch that no longer fits its
program raises, so the zoo cannot rot silently.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"


class PatchError(Exception):
    """A patch does not fit its program; the text names the patch, the file and how often the old text occurs."""


@dataclass(frozen=True)
class Program:
    """A healthy program.

    Attributes:
        name: its folder's name under `programs/`.
        command: the command line that trains it, to be run in its folder; the first word stands for the interpreter.
        style: the manner it is written in.
        requires: packages that it imports and the kit does not install.
        about: one sentence.
    """

    name: str
    command: tuple[str, ...]
    style: str
    requires: tuple[str, ...]
    about: str

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return PROGRAMS / self.name

    def apply(self, destination: Path) -> None:
        """Copy the program as it is.

        Args:
            destination: a folder that does not exist yet, or is empty.
        """
        results = ["checkpoints", "runs", "outputs", "logs", "data", "*.pt", "*.pth", "*.pth.tar"]
        left_out = shutil.ignore_patterns("__pycache__", *results)
        shutil.copytree(self.folder, destination, ignore=left_out, dirs_exist_ok=True)


def load_program(name: str) -> Program:
    """Read `programs/<name>/program.toml`.

    Raises:
        FileNotFoundError: there is no such program.
        KeyError: a key is missing.
    """
    about = tomllib.loads((PROGRAMS / name / "program.toml").read_text(encoding="utf-8"))
    return Program(name, tuple(about["command"]), about["style"], tuple(about["requires"]), about["about"])


def programs() -> list[Program]:
    """Every program of the zoo, by name."""
    return [load_program(path.parent.name) for path in sorted(PROGRAMS.glob("*/program.toml"))]


@dataclass(frozen=True)
class Edit:
    """One replacement of text.

    Attributes:
        file: path in the program's folder.
        old: the text to replace, exactly as it stands.
        new: what stands there afterwards.
        count: how often `old` occurs; all occurrences are replaced.
    """

    file: str
    old: str
    new: str
    count: int = 1


def _patch(name: str, program: str, edits: Sequence[Edit], destination: Path) -> None:
    load_program(program).apply(destination)
    for edit in edits:
        path = destination / edit.file
        text = path.read_text(encoding="utf-8")
        found = text.count(edit.old)
        if found != edit.count:
            raise PatchError(f"{name}: {edit.old!r} occurs {found} times in {program}/{edit.file}, not {edit.count}")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


@dataclass(frozen=True)
class Bug:
    """A bug planted in a healthy program.

    Attributes:
        name: unique over all bugs.
        program: the healthy program it is planted in.
        edits: the replacements, made in order.
        codes: rules of which at least one must report it as a failure or a warning.
        source: its id in the catalogue of bugs (`D01`), or "own".
        crashes: the program ends with an error instead of training wrongly in silence.
    """

    name: str
    program: str
    edits: Sequence[Edit]
    codes: frozenset[str] | set[str]
    source: str
    crashes: bool = False

    def apply(self, destination: Path) -> None:
        """Copy the program and plant the bug.

        Raises:
            PatchError: a text to replace does not occur as often as it should.
        """
        _patch(self.name, self.program, self.edits, destination)


@dataclass(frozen=True)
class Variation:
    """A change that looks suspicious and is right.

    Attributes:
        name: unique over all variations.
        program: the healthy program it changes.
        edits: the replacements, made in order.
        about: why it is right, in one sentence.
    """

    name: str
    program: str
    edits: Sequence[Edit]
    about: str

    def apply(self, destination: Path) -> None:
        """Copy the program and make the change.

        Raises:
            PatchError: a text to replace does not occur as often as it should.
        """
        _patch(self.name, self.program, self.edits, destination)


class Patches:
    """Writes the patches of one program.

    Args:
        program: its name.
        file: the file that an edit changes unless it names another.
    """

    def __init__(self, program: str, file: str = "train.py") -> None:
        self.program = program
        self.file = file

    def edit(self, old: str, new: str, file: str | None = None, count: int = 1) -> Edit:
        """Replace `old`, which occurs `count` times in `file`, by `new`."""
        return Edit(file or self.file, old, new, count)

    def bug(self, name: str, source: str, codes: str, *edits: Edit, crashes: bool = False) -> Bug:
        """A bug of this program; `codes` are separated by blanks."""
        return Bug(name, self.program, edits, frozenset(codes.split()), source, crashes)

    def healthy(self, name: str, about: str, *edits: Edit) -> Variation:
        """A healthy variation of this program."""
        return Variation(name, self.program, edits, about)
