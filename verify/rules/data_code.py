"""What the text of a program says about its transforms: which are random, and what becomes of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cached_property

from verify.trace.record import Record

RANDOM_CODE = re.compile(
    r"^(Random[A-Z]\w*|\w*Jitter|AutoAugment|RandAugment|TrivialAugmentWide|AugMix|\w*Cutout|CoarseDropout"
    r"|HorizontalFlip|VerticalFlip|ShiftScaleRotate|rand|randn|randint|random|uniform|choice|bernoulli|normal|randrange"
    r"|getrandbits|rand_like|randn_like|gauss)$"
)
TRANSFORM_NAME = re.compile(r"transform|augment|(^|_)aug(_|$|s$)|(^|_)tfms?(_|$)|(^|_)tf(_|$)", re.IGNORECASE)
TRAIN_NAME = re.compile(r"train|(^|_)aug|augment", re.IGNORECASE)


class TransformCode:
    """What the run's source files say about transforms. Names are not resolved further than one reader would."""

    def __init__(self, record: Record) -> None:
        self.trees: dict[str, ast.Module] = {}
        for path, text in record.sources.items():
            if path.endswith(".py"):
                try:
                    self.trees[path] = ast.parse(text)
                except (SyntaxError, ValueError):
                    continue

    def _nodes(self) -> Iterator[tuple[str, ast.AST]]:
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                yield path, node

    @cached_property
    def set_from_outside(self) -> dict[str, str]:
        """Attributes that are assigned on something other than `self`, and where."""
        found: dict[str, str] = {}
        for path, node in self._nodes():
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
                name = node.args[1] if len(node.args) > 1 else None
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    found.setdefault(name.value, f"{path}:{node.lineno}")
            for target in targets:
                if isinstance(target, ast.Attribute) and not _is_self(target.value):
                    found[target.attr] = f"{path}:{target.lineno}"
        return found

    @cached_property
    def definitions(self) -> dict[str, list[ast.AST]]:
        """What each name of a function, class or variable stands for."""
        found: dict[str, list[ast.AST]] = {}
        for _, node in self._nodes():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        found.setdefault(target.id, []).append(node.value)
        return found

    def is_random(self, node: ast.AST, depth: int = 0) -> bool:
        """Whether an expression mentions something random, also through the names that it uses."""
        for part in ast.walk(node):
            name = part.id if isinstance(part, ast.Name) else part.attr if isinstance(part, ast.Attribute) else ""
            if not name:
                continue
            if RANDOM_CODE.match(name):
                return True
            if depth < 3 and isinstance(part, ast.Name):
                known = [made for made in self.definitions.get(name, []) if made is not node]
                if any(self.is_random(made, depth + 1) for made in known):
                    return True
        return False

    @cached_property
    def random_transforms_given(self) -> bool:
        """Whether something random is given to a dataset: as an argument or attribute that is called a transform."""
        for _, node in self._nodes():
            if isinstance(node, ast.keyword) and node.arg and TRANSFORM_NAME.search(node.arg):
                if self.is_random(node.value):
                    return True
            elif isinstance(node, ast.Assign):
                named = [last_name(target) for target in node.targets]
                if any(TRANSFORM_NAME.search(name) for name in named) and self.is_random(node.value):
                    return True
        return False

    @cached_property
    def discarded_random_calls(self) -> list[str]:
        """Where the result of a random transform is not used: of a transform attribute, or a function that returns."""
        found = []
        for path, node in self._nodes():
            if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
                continue
            name = last_name(node.value.func)
            functions = [made for made in self.definitions.get(name, []) if isinstance(made, ast.FunctionDef)]
            returning = [made for made in functions if _returns(made) and self.is_random(made)]
            attribute = isinstance(node.value.func, ast.Attribute) and not functions and TRANSFORM_NAME.search(name)
            if returning or attribute:
                found.append(f"{path}:{node.lineno}")
        return found

    @cached_property
    def unread_parameters(self) -> dict[str, str]:
        """Parameters of constructors that their body never reads, and where."""
        found = {}
        for path, node in self._nodes():
            if not isinstance(node, ast.FunctionDef) or node.name != "__init__":
                continue
            read = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
            for argument in [*node.args.args[1:], *node.args.kwonlyargs]:
                if argument.arg not in read:
                    found[argument.arg] = f"{path}:{node.lineno}"
        return found

    @cached_property
    def called_directly(self) -> bool:
        """Whether a variable that holds something random is called like a function: augmentation in the loop."""
        variables = {
            name
            for name, made in self.definitions.items()
            if any(isinstance(value, ast.Call) and self.is_random(value) for value in made)
        }
        return any(
            isinstance(node, ast.Call) and last_name(node.func) in variables and not isinstance(node.func, ast.Call)
            for _, node in self._nodes()
        )

    @cached_property
    def unused_random_transforms(self) -> list[tuple[str, str]]:
        """(name, location) of variables that hold a random transform and are never read, in any file."""
        read = set()
        for _, node in self._nodes():
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                read.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.alias):
                read.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)  # __all__, getattr, globals()[...]
        found = []
        for path, node in self._nodes():
            if not isinstance(node, ast.Assign) or len(node.targets) != 1:
                continue
            for target in flat_targets(node.targets[0]):
                name = last_name(target)
                alone = target is node.targets[0]
                likely = TRANSFORM_NAME.search(name) or _makes_transform(node.value)
                if not name or name.startswith("_") or name in read or not likely:
                    continue
                if (
                    (alone or TRAIN_NAME.search(name))
                    and self.is_random(node.value)
                    and isinstance(node.value, ast.Call)
                ):
                    found.append((name, f"{path}:{node.lineno}"))
        return found


def _returns(function: ast.FunctionDef) -> bool:
    return any(isinstance(part, ast.Return) and part.value is not None for part in ast.walk(function))


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def last_name(node: ast.AST) -> str:
    """The last part of a dotted name, of what is subscripted too; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return last_name(node.value) if isinstance(node, ast.Subscript) else ""


def flat_targets(target: ast.expr) -> list[ast.expr]:
    """What is assigned to, with a tuple or list unpacked."""
    return list(target.elts) if isinstance(target, (ast.Tuple, ast.List)) else [target]


def _makes_transform(value: ast.expr) -> bool:
    name = last_name(value.func) if isinstance(value, ast.Call) else ""
    return name in ("Compose", "Sequential") or bool(RANDOM_CODE.match(name) and name[:1].isupper())
