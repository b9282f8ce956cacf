"""What the tools are tried on: the planted and healthy models of the suite, and programs of the zoo.

Every bug has a healthy counterpart; what a tool says of that too is not counted as having caught the bug.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Bugs in the training loop and around it; the model itself is right, unless the name says otherwise.
PLANTED_PROGRAMS = {
    "argparse_script": (
        "missing-zero-grad",
        "zero-grad-between-backward-and-step",
        "missing-step",
        "clip-after-step",
        "no-eval-mode",
        "train-mode-only-once",
        "validation-augmented",
        "train-not-shuffled",
        "validation-is-training",
        "constants-in-another-range",
        "softmax-in-the-model",
        "head-not-in-optimizer",
        "learning-rate-zero",
        "schedule-never-stepped",
        "resume-forgets-the-schedule",
        "option-never-read",
    ),
    "functional_loop": (
        "hand-cut-batches-missing-zero-grad",
        "eval-mode-forgotten",
        "plateau-in-the-wrong-direction",
        "head-updated-by-two-optimizers",
    ),
    "notebook_module": (
        "softmax-before-functional-loss",
        "loss-of-a-detached-prediction",
        "one-cycle-stepped-per-epoch",
        "validation-taken-from-training-tensors",
        "layers-in-a-python-list",
        "best-weights-kept-by-reference",
    ),
}
HEALTHY_PROGRAMS = {
    "argparse_script": ("constant-learning-rate", "clip-by-value", "last-batch-of-two", "group-norm-only"),
    "functional_loop": ("noise-added-in-training",),
    "notebook_module": ("label-smoothing",),
}

# The suite shows them to the rules about data flow alone: blocks that are never called, a backward pass that raises.
NOT_HEALTHY = {"LearnedQuery", "NetWithOverwritesWithoutSkip"}


@dataclass(frozen=True)
class Case:
    """A model or program.

    Attributes:
        name: unique among the cases of its kind.
        code: the rule of the kit that names the bug; empty for a healthy one.
        counterpart: the name of the healthy case that the bug was planted in; its own name for that one.
        program: name of the zoo's program, empty for a model.
        side: height and width of a model's input, in pixels.
        patch: what writes the program into a folder.
    """

    name: str
    code: str
    counterpart: str
    program: str = ""
    side: int = 16
    patch: Any = None

    @property
    def healthy(self) -> bool:
        """Whether nothing is planted in it."""
        return not self.code


def models() -> list[Case]:
    """The planted models of `tests/verify` and their healthy look-alikes."""
    from tests.verify import planted, planted_dataflow

    found: dict[str, Case] = {}
    for module, usual in ((planted, "Base"), (planted_dataflow, "Net")):
        for model, code in [*((m, "") for m in module.HEALTHY), *module.PLANTED]:
            name = f"{module.__name__.rpartition('.')[2]}.{model.__name__}"
            if model.__name__ in NOT_HEALTHY:
                continue
            bases = {base.__name__ for base in model.__mro__}
            like = "ViT" if "ViT" in bases else usual
            case = Case(name, code, f"{name.partition('.')[0]}.{like}", side=getattr(model, "side", 16))
            found.setdefault(name, case)
    return list(found.values())


def programs() -> list[Case]:
    """The chosen programs of the zoo, planted and healthy."""
    from tests.zoo.bugs import BUGS
    from tests.zoo.model import load_program
    from tests.zoo.variations import HEALTHY

    bugs, variations = ({(b.program, b.name): b for b in group} for group in (BUGS, HEALTHY))
    found = []
    for program, names in PLANTED_PROGRAMS.items():
        found.append(Case(program, "", program, program, patch=load_program(program)))
        for name in HEALTHY_PROGRAMS[program]:
            found += [Case(f"{program}.{name}", "", program, program, patch=variations[program, name])]
        found += [planted_case(bugs[program, name]) for name in names]
    return found


def planted_case(bug: Any) -> Case:
    """A bug of the zoo."""
    return Case(f"{bug.program}.{bug.name}", " ".join(sorted(bug.codes)), bug.program, bug.program, patch=bug)


def model_file(case: Case) -> str:
    """Text of a file whose class `Net` is the model of a case."""
    module, _, name = case.name.partition(".")
    return (
        f"from tests.verify.{module} import HEALTHY, PLANTED\n\n"
        f"Net = {{m.__name__: m for m in [*HEALTHY, *(m for m, _ in PLANTED)]}}[{name!r}]\n"
    )
