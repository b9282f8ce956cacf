"""The catalogue of rules: one module a family, one function a rule.

A rule is a pure function of what a probe measured. It yields a `Finding` for each problem; a rule that yields
nothing, or a finding whose status is `PASS`, has passed. Its docstring is its page: the first line is the title, the
rest is printed by `kit explain CODE` and becomes the rule's entry in docs/rules.md.

Rule modules never import torch, so that listing and explaining rules stays instant; what needs torch is in the probe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from string import ascii_uppercase
from typing import Any

from verify.report import Finding, Status

FAMILY_MODULES = ("model", "gradient", "training")

RuleFunction = Callable[[Any], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    """A rule of the catalogue. `severity` is what a finding means unless the finding says otherwise."""

    code: str
    name: str
    severity: Status
    function: RuleFunction

    @property
    def title(self) -> str:
        """The first line of the docstring, without its full stop."""
        return inspect.getdoc(self.function).split("\n", 1)[0].rstrip(".")  # type: ignore[union-attr]

    @property
    def page(self) -> str:
        """The docstring below its title."""
        return inspect.getdoc(self.function).partition("\n")[2].strip()  # type: ignore[union-attr]


_REGISTRY: dict[str, Rule] = {}


def rule(code: str, *, severity: Status = Status.FAIL) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as a rule; its name becomes the rule's name, with hyphens."""

    def register(function: RuleFunction) -> RuleFunction:
        if code in _REGISTRY:
            raise ValueError(f"rule code {code} is taken by {_REGISTRY[code].name}")
        if not inspect.getdoc(function):
            raise ValueError(f"rule {code} has no docstring")
        _REGISTRY[code] = Rule(code, function.__name__.replace("_", "-"), severity, function)
        return function

    return register


def all_rules() -> dict[str, Rule]:
    """Every rule by its code, in the order of the numbers: the model comes before what builds on it."""
    for family in FAMILY_MODULES:
        import_module(f"verify.rules.{family}")
    return dict(sorted(_REGISTRY.items(), key=lambda item: item[0].lstrip(ascii_uppercase)))


def select_rules(select: list[str], ignore: list[str]) -> list[Rule]:
    """The rules whose code starts with one of `select` (all when empty) and with none of `ignore`.

    Raises:
        ValueError: a prefix that matches no rule, or nothing is left.
    """
    rules = all_rules()
    for prefix in [*select, *ignore]:
        if not any(code.startswith(prefix) for code in rules):
            raise ValueError(f"no rule has a code that starts with {prefix!r}; `kit rules` lists them")
    chosen = [
        rule
        for code, rule in rules.items()
        if (not select or code.startswith(tuple(select))) and not (ignore and code.startswith(tuple(ignore)))
    ]
    if not chosen:
        raise ValueError("no rule is left to check: every selected one is ignored too")
    return chosen
