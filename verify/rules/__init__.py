"""The catalogue of rules: one module a family, one function a rule.

A rule is a pure function of what was measured: of a model (a `ModelProbe`), or of a watched run (a `Record`). It yields
a `Finding` for each problem; a rule that yields nothing, or a finding whose status is `PASS`, has passed. Its docstring
is its page: the first line is the title, the rest is printed by `kit explain CODE` and becomes the rule's entry in
docs/rules.md.

Rule modules never import torch, so that listing and explaining rules stays instant; what needs torch is in the probe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any

from verify.report import Finding, Status

MODULES = (
    "model",
    "dataflow",
    "behaviour",
    "layers",
    "drops",
    "parity",
    "structure",
    "data",
    "data_fitting",
    "data_before_split",
    "data_pictures",
    "data_stored",
    "data_per_split",
    "data_groups",
    "missing_values",
    "data_epochs",
    "mixing",
    "gradient",
    "training",
    "loop",
    "clipping",
    "teachers",
    "config",
    "config_effect",
    "evaluation",
    "optimizer",
    "group_rates",
    "schedule",
    "rates",
    "loss",
    "loss_terms",
    "loss_overlap",
    "loss_weights",
    "confidence",
    "tokens",
    "checkpoint",
    "selection",
    "selection_data",
    "accumulators",
    "metrics",
    "result_names",
    "ranking",
    "paired_order",
    "kept_apart",
    "reproducibility",
    "precision",
    "averaging",
    "distributed",
    "source",
    "source_generators",
    "source_residual",
    "running",
    "acceptance",
)
# Those with rules about a model; importing the others costs as much CPU time as counting parameters.
MODULES_ABOUT_MODELS = (
    "model",
    "dataflow",
    "behaviour",
    "layers",
    "drops",
    "parity",
    "structure",
    "gradient",
    "training",
)
# The order in which a report lists them: the data and the model come before what builds on them.
FAMILIES = {
    "RUN": "whether the script runs at all, on any machine",
    "DAT": "the data that training and evaluation get",
    "MOD": "what a model is and computes",
    "PAR": "parity with a reference",
    "LOS": "the loss, and what it is given",
    "GRD": "gradients",
    "OPT": "what the optimizer holds, and with which settings",
    "LRS": "learning rate schedules",
    "TRN": "training steps, and the order of calls in the training loop",
    "AMP": "mixed precision",
    "EMA": "averages of the weights",
    "EVL": "evaluation and the numbers that it reports",
    "CKP": "what is saved, and what a resumed run makes of it",
    "REP": "whether a run can be repeated",
    "DST": "training in several processes",
    "CFG": "options and configuration files",
    "SRC": "mistakes that the text of the source shows by itself",
    "SPC": "what verify.yaml asks for",
}

_ORDER = tuple(FAMILIES)

NO_LOGITS = "a part of a model has no logits"
# Shapes and counts, which need no numbers.
SHAPE_RULES = ("MOD101", "MOD102", "MOD103")

RuleFunction = Callable[[Any], Iterator[Finding]]


class Subject(StrEnum):
    """What a rule judges."""

    MODEL = "model"  # a ModelProbe: `kit verify`
    RUN = "run"  # a Record: `kit watch`


@dataclass(frozen=True)
class Rule:
    """A rule of the catalogue.

    Args:
        severity: what a finding means unless the finding says otherwise.
        asked: key of the spec, such as `like` or `expect.shapes`, without which there is nothing to check.
    """

    code: str
    name: str
    severity: Status
    subject: Subject
    function: RuleFunction
    asked: str = ""

    def is_asked(self, spec: Any) -> bool:
        """Whether the spec says what the rule needs to know."""
        for key in filter(None, self.asked.split(".")):
            spec = getattr(spec, key, None)
        return spec not in (None, "", {}, [])

    @property
    def title(self) -> str:
        """The first line of the docstring, without its full stop."""
        return inspect.getdoc(self.function).split("\n", 1)[0].rstrip(".")  # type: ignore[union-attr]

    @property
    def page(self) -> str:
        """The docstring below its title."""
        return inspect.getdoc(self.function).partition("\n")[2].strip()  # type: ignore[union-attr]


_REGISTRY: dict[str, Rule] = {}


def rule(
    code: str, *, severity: Status = Status.FAIL, subject: Subject = Subject.MODEL, asked: str = ""
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as a rule; its name becomes the rule's name, with hyphens."""

    def register(function: RuleFunction) -> RuleFunction:
        if code in _REGISTRY:
            raise ValueError(f"rule code {code} is taken by {_REGISTRY[code].name}")
        if not inspect.getdoc(function):
            raise ValueError(f"rule {code} has no docstring")
        _REGISTRY[code] = Rule(code, function.__name__.replace("_", "-"), severity, subject, function, asked)
        return function

    return register


def all_rules() -> dict[str, Rule]:
    """Every rule by its code, family by family: the model comes before what builds on it."""
    return _known(MODULES)


def _begins_any(prefix: str, rules: dict[str, Rule]) -> bool:
    return any(code.startswith(prefix) for code in rules)


def _known(modules: tuple[str, ...]) -> dict[str, Rule]:
    """The rules that are registered once these modules have been imported."""
    for module in modules:
        import_module(f"verify.rules.{module}")
    return dict(sorted(_REGISTRY.items(), key=lambda item: (_ORDER.index(item[0][:3]), item[0])))


def select_rules(select: list[str], ignore: list[str], subject: Subject = Subject.MODEL) -> list[Rule]:
    """The rules about `subject` whose code starts with one of `select` (all when empty) and with none of `ignore`.

    Raises:
        ValueError: a prefix that matches no rule at all, or nothing is left.
    """
    rules = _known(MODULES_ABOUT_MODELS) if subject is Subject.MODEL else all_rules()
    if not all(_begins_any(code, rules) for code in (*select, *ignore)):
        rules = all_rules()
        check_codes([*select, *ignore])
    chosen = [
        rule
        for code, rule in rules.items()
        if rule.subject is subject
        and (not select or code.startswith(tuple(select)))
        and not (ignore and code.startswith(tuple(ignore)))
    ]
    if not chosen:
        raise ValueError(f"no rule is left to check about a {subject}: {_why_nothing(select)}")
    return chosen


def planned_rules(spec: Any) -> list[Rule]:
    """The rules about a model that `spec` selects and gives something to check, in the order in which they are applied.

    What was asked for comes right after shapes and counts, so that time never runs out before it.

    Raises:
        ValueError: nothing is left, or a prefix matches no rule.
    """
    chosen = select_rules(spec.select, spec.ignore)
    planned = [rule for rule in chosen if rule.is_asked(spec)]
    if not planned:
        lacking = ", ".join(dict.fromkeys(rule.asked for rule in chosen))
        raise ValueError(f"no rule is left to check about a model: what is selected needs {lacking}")
    return sorted(planned, key=lambda rule: (rule.code not in SHAPE_RULES, not rule.asked))


def rules_named(names: list[list[str]]) -> list[Rule]:
    """The rules of these (module, code), without importing the modules of any others."""
    for module, _ in names:
        import_module(module)
    return [_REGISTRY[code] for _, code in names]


def _why_nothing(select: list[str]) -> str:
    return f"what {', '.join(select)} selects is about something else, or ignored" if select else "every one is ignored"


def check_codes(prefixes: list[str]) -> None:
    """See that each prefix is that of a rule.

    Raises:
        ValueError: one is not.
    """
    rules = all_rules()
    for prefix in prefixes:
        if not any(code.startswith(prefix) for code in rules):
            raise ValueError(f"no rule has a code that starts with {prefix!r}; `kit rules` lists them")
