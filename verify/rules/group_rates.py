"""OPT: groups of parameters and the learning rates that were meant for them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from verify.report import Finding
from verify.rules import Subject, rule
from verify.source import Project, argument, keyword, text_of, torch_project, words
from verify.trace.record import Record

OPTIMIZERS = re.compile(r"^torch\.optim\.(?!lr_scheduler|swa_utils)[A-Z]\w*$")
# Words that say nothing about which parameters a rate is for.
GENERAL = words(
    "lr lrs learning rate rates base init initial max min peak start default args arg cfg config conf opts opt opt_ hp "
    "hparams hyper params param parameters parameter named self model models module net network train training optim "
    "optimizer settings options requires grad get float filter list p n name names value group groups weight weights"
)


@dataclass(frozen=True)
class Group:
    """Parameters and their rate, with the words that either is called by."""

    node: ast.expr
    params: frozenset[str]
    rate: frozenset[str]


@rule("OPT721", subject=Subject.RUN)
def group_rates_crossed(record: Record) -> Iterator[Finding]:
    """Two groups of parameters have each other's learning rate.

    Why it matters: a rate that is right for a new head tears a pretrained backbone apart, and the head, at the rate of
    the backbone, hardly learns.
    Found by: reading the source: two groups of an optimizer, or two optimizers made in one function, whose parameters
    and rates are called by the same words, crosswise.
    Not an error: rates whose names say nothing about the parameters; one rate for both.

    Wrong: `{"params": backbone.parameters(), "lr": head_lr}, {"params": head.parameters(), "lr": backbone_lr}`
    Right: `{"params": backbone.parameters(), "lr": backbone_lr}, {"params": head.parameters(), "lr": head_lr}`
    """
    project = torch_project(record)
    for groups in [*_in_lists(project), *_in_functions(project)]:
        for one, other in combinations(groups, 2):
            if _is_of(one, other) and _is_of(other, one):
                yield Finding(
                    measured=f"{_shown(one.node)} and {_shown(other.node)}"[:200],
                    expected="each group with the rate that is named for it",
                    message="the learning rates of two groups of parameters are swapped",
                    location=project.at(one.node),
                    hint="swap the two rates",
                )
                return


def _is_of(one: Group, other: Group) -> bool:
    """Whether the rate of one group is called by the other's name, and not by its own."""
    return not one.rate & one.params and bool(one.rate & (other.params - one.params))


def _in_lists(project: Project) -> Iterator[list[Group]]:
    for node in project.nodes(ast.List):
        groups = [group for item in node.elts if isinstance(item, ast.Dict) and (group := _of_dict(item))]
        if len(groups) > 1:
            yield groups


def _of_dict(node: ast.Dict) -> Group | None:
    given = {text_of(key): value for key, value in zip(node.keys, node.values, strict=True)}
    params, rate = given.get("params"), given.get("lr")
    if params is None or rate is None:
        return None
    return Group(node, _called(params) | _called(given.get("name")), _called(rate))


def _in_functions(project: Project) -> Iterator[list[Group]]:
    """The optimizers that one function, or the top level of a file, makes."""
    made: dict[ast.AST, list[Group]] = {}
    for call in project.calls:
        params, rate = argument(call, 0, "params"), keyword(call, "lr")
        if params is not None and rate is not None and OPTIMIZERS.match(project.qualified(call.func)):
            made.setdefault(project.scope(call), []).append(Group(call, _called(params), _called(rate)))
    yield from made.values()


def _called(node: ast.expr | None) -> frozenset[str]:
    """The words of all names, attributes and keys in an expression that are not general ones."""
    found: set[str] = set()
    for inner in ast.walk(node) if node is not None else ():
        text = inner.id if isinstance(inner, ast.Name) else getattr(inner, "attr", None) or text_of(inner) or ""
        plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()
        found.update(re.findall(r"[a-z]+\d*", plain))
    return frozenset(found) - GENERAL


def _shown(node: ast.expr) -> str:
    return ast.unparse(node)[:90]
