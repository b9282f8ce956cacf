"""What a script calls the things that it holds, and which split such a name stands for.

Nothing here imports torch: rules about names read them the same way.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

TRAIN_WORD = re.compile(r"(?<![a-z])[xy]?_?(train|trn|tr(?![a-z])|fit|seen)")
EVAL_WORD = re.compile(
    r"(?<![a-z])[xy]?_?(val(?!ue)|vld|dev(?![a-z])|test|hold_?out|held_?out|unseen|eval|va(?![a-z])|te(?![a-z]))"
)
MOST_THINGS = 4000
DEPTH = 3
OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))


def role(path: str) -> str:
    """`train`, `eval` or nothing: the split that a name such as `loaders.val` stands for.

    The last word that says anything decides; one that says both (`train_eval_loader`) is about training.
    """
    for word in reversed(path.split(".")):
        plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).lower()
        if TRAIN_WORD.search(plain):
            return "train"
        if EVAL_WORD.search(plain):
            return "eval"
    return ""


def role_of_all(paths: list[str]) -> str:
    """The split that all names of one thing agree on; those that say nothing do not count."""
    roles = {role(path) for path in paths} - {""}
    return roles.pop() if len(roles) == 1 else ""


def held() -> Iterator[tuple[str, Any]]:
    """(path, value) of what the script's running functions and its main module hold, and what is inside of it."""
    seen: set[int] = set()
    todo: list[tuple[str, Any, int]] = []
    for variables in _scopes():
        todo.extend((name, value, 0) for name, value in variables.items() if not name.startswith("__"))
    for count, (path, value, depth) in enumerate(todo):  # grows while it is read: what is near comes first
        if count >= MOST_THINGS:
            return
        yield path, value
        if depth < DEPTH and id(value) not in seen:
            seen.add(id(value))
            todo.extend((f"{path}.{name}", inner, depth + 1) for name, inner in _inside(value))


def _scopes() -> list[dict[str, Any]]:
    frame: Any = sys._getframe()
    scopes: dict[int, dict[str, Any]] = {}
    while frame is not None:
        if is_project_file(frame.f_code.co_filename):
            scopes[id(frame)] = dict(frame.f_locals)
            scopes.setdefault(id(frame.f_globals), dict(frame.f_globals))
        frame = frame.f_back
    main = vars(sys.modules["__main__"])
    if is_project_file(str(main.get("__file__") or "<main>")):
        scopes.setdefault(id(main), dict(main))
    return list(scopes.values())


def is_project_file(path: str) -> bool:
    """Whether source code is the user's: of no installed package, not of Python, and not ours."""
    if path.startswith("<frozen") or "site-packages" in path or "dist-packages" in path:
        return False
    full = os.path.abspath(path)
    return not full.startswith((OWN_FOLDER + os.sep, os.path.join(sys.base_prefix, "lib") + os.sep))


def _inside(value: Any) -> list[tuple[str, Any]]:
    if type(value) is dict:
        return [(str(key), inner) for key, inner in list(value.items())[:50] if isinstance(key, (str, int))]
    if isinstance(value, (list, tuple)) and len(value) <= 20:
        return [(str(number), inner) for number, inner in enumerate(value)]
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return []
    module = sys.modules.get(str(type(value).__module__))
    if module is None or not is_project_file(str(getattr(module, "__file__", None) or "<main>")):
        return []
    return [(name, inner) for name, inner in list(vars(value).items())[:100] if isinstance(name, str)]
