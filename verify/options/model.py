"""A set of options: its keys, where each is declared, and the expressions that hold it."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field


@dataclass
class Key:
    """One option: where it is declared, its value when it is a constant, and the options below it.

    `path` is its file where a set of options comes from several.
    """

    line: int
    value: object = None
    below: dict[str, Key] = field(default_factory=dict)
    path: str = ""


@dataclass(eq=False)
class Options:
    """A set of options that belong together.

    Args:
        kind: `argparse`, `file`, `dict` or `class`.
        path: the file that declares it.
        keys: by name.
        roots: the expressions that hold it, before anything is done with them.
        given: the parameters that a framework passes it to.
    """

    kind: str
    path: str
    keys: dict[str, Key]
    roots: list[ast.AST] = field(default_factory=list)
    node: ast.ClassDef | None = None
    given: list[ast.arg] = field(default_factory=list)

    def at(self, where: tuple[str, ...]) -> dict[str, Key]:
        """The options below a path."""
        keys = self.keys
        for name in where:
            keys = keys[name].below
        return keys


Value = tuple[Options, tuple[str, ...]]
