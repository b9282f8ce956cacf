"""Whether a model computes the same function as a reference, whatever its parameters are called.

The reference gets random numbers everywhere (also in norms, biases and layer scales, which are 1 or 0 at first and hide
what is done with them), these are written into the model, and both answer the same input. Shapes and uses come from the
meta device where that works.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from verify.dataflow import follow_forward
from verify.faults import ModelRaisedError, UnavailableError, user_code
from verify.locate import Difference, first_difference
from verify.matching import FUSED, Layout, Matching, match, side_by_side
from verify.outputs import main_logits
from verify.report import Table
from verify.shapes import plain_sizes
from verify.targets import Target, TargetError
from verify.uses import Epsilon, Use, Uses, uses_of

if TYPE_CHECKING:
    from verify.probe import ModelProbe

BATCH = 2
SEED = 13_000_000
# Of the largest difference of two logits, relative to the standard deviation of the reference's.
TOLERANCE = 1e-4
# Inside of a model, in float64 and in float32, relative to the standard deviation of a result.
EXACT, ROUNDED = 2e-5, 1e-3
# In float32, of another layout that is worth a closer look.
PROMISING = 1e-2
STRUCTURE_RULE = "PAR131"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the two models answered.

    Attributes:
        difference: largest difference of the logits, relative to the standard deviation of the reference's.
        precision: "float32", or "float64" where rounding had to be ruled out.
        layout: under which the model was given the numbers.
        first: where they begin to differ; None if they agree.
    """

    difference: float
    precision: str
    layout: Layout
    first: Difference | None

    @property
    def equal(self) -> bool:
        """Whether the logits agree."""
        return self.difference <= TOLERANCE


class Parity:
    """A model beside a reference.

    Args:
        probe: of the model.
        target: builds the reference.
    """

    def __init__(self, probe: ModelProbe, target: Target) -> None:
        self.probe = probe
        self.target = target

    @cached_property
    def size(self) -> tuple[int, ...]:
        """(C, H, W): given, or known of the model or the reference."""
        probe = self.probe
        known = probe.spec.input_size or probe.target.input_size or self.target.input_size
        return tuple(known) if known else probe.input_size

    @cached_property
    def uses(self) -> tuple[Uses, Uses]:
        """How the reference and the model use their parameters."""
        try:
            reference = self._uses(self.target)
        except ModelRaisedError as error:  # nothing is known of the model then
            raise UnavailableError(f"nothing was compared: the reference raises {error}") from None
        return reference, self._uses(self.probe.target)

    def _uses(self, target: Target) -> Uses:
        try:
            with torch.device("meta"):
                model, x = target.build(), torch.empty(BATCH, *self.size)
            with plain_sizes():
                return uses_of(model, x)
        except Exception:  # what does not work without numbers is run with them
            model = self._build(target)
            with user_code(f"in forward of {target.name}, input {'x'.join(map(str, self.size))}", STRUCTURE_RULE):
                return uses_of(model, self.probe.images(BATCH, size=self.size))

    def _build(self, target: Target) -> nn.Module:
        torch.manual_seed(0)
        with user_code(f"while {target.name} was built", STRUCTURE_RULE):
            model = target.build()
        if not isinstance(model, nn.Module):
            raise TargetError(f"{target.name} gives a {type(model).__name__}, which is no torch.nn.Module")
        return model.to(self.probe.device).eval()

    @cached_property
    def matching(self) -> Matching:
        """Which parameter of the model is which of the reference."""
        return match(*self.uses)

    def show_structures(self) -> None:
        """Put both structures side by side below the report, around the places where they differ."""
        columns = [self.target.name, self.probe.target.name, ""]
        rows = side_by_side(*self.uses)
        notes = ["In order of execution; a matrix is shown as (inputs, outputs)."]
        self.probe.tables.append(Table(title="Parameters side by side", columns=columns, rows=rows, notes=notes))

    @cached_property
    def candidate(self) -> nn.Module:
        """The model, for the names and places of its modules."""
        return self._build(self.probe.target)

    @cached_property
    def epsilons(self) -> list[tuple[Epsilon, Epsilon]]:
        """(reference's, model's) for paired normalisations that add different numbers to the variance."""
        reference, candidate = self.uses
        of_reference = {epsilon.name: epsilon for epsilon in reference.epsilons}
        pairs = (
            (of_reference[name], epsilon)
            for epsilon in candidate.epsilons
            for name in self.matching.counterparts.get(epsilon.name, ())
            if name in of_reference
        )
        return [(a, b) for a, b in pairs if not math.isclose(a.value, b.value, rel_tol=1e-3)]

    @cached_property
    def comparison(self) -> Comparison:
        """Both answer the same input.

        Raises:
            ModelRaisedError: one of them raises.
        """
        reference, candidate = self._build(self.target), self.candidate
        x = self.probe.images(BATCH, size=self.size)
        randomise(reference, self.uses[0], x)
        best = self._compare(reference, candidate, x, Layout())
        for layout in self._layouts(reference, x) if not best.equal else ():
            self._load(reference, candidate, layout)
            if self._difference(reference, candidate, x) < PROMISING:
                best = self._compare(reference, candidate, x, layout)
                break
        return best if best.equal else self._explained(reference, candidate, x, best)

    def _layouts(self, reference: nn.Module, x: Tensor) -> Iterator[Layout]:
        """Other orders of the same numbers, under which an equal function may keep them."""
        patches = ("channels first", "channels last") if self.matching.mixed else ("channels first",)
        width = self._head_width(reference, x) if any(self.matching.fused) else 0
        usual, *others = FUSED
        orders = [(usual, usual)]
        if width and self.matching.fused[1]:
            orders += [(usual, other) for other in others]
        if width and self.matching.fused[0]:
            orders += [(other, usual) for other in others]
        layouts = [Layout(patch, *order, width) for order in orders for patch in patches]
        yield from layouts[1:]

    def _head_width(self, model: nn.Module, x: Tensor) -> int:
        """Width of a head in the reference; 0 for none."""
        try:
            found = follow_forward(model, x).attentions
        except Exception:
            return 0
        return found[0].width if found else 0

    def _load(self, reference: nn.Module, candidate: nn.Module, layout: Layout) -> None:
        source, target = _state(reference), _state(candidate)
        with torch.no_grad():
            for pair in self.matching.pairs:
                pair.copy(source, target, layout)

    def _compare(self, reference: nn.Module, candidate: nn.Module, x: Tensor, layout: Layout) -> Comparison:
        self._load(reference, candidate, layout)
        difference = self._difference(reference, candidate, x)
        if difference <= TOLERANCE:
            return Comparison(difference=difference, precision="float32", layout=layout, first=None)
        try:
            exact = self._difference(reference.double(), candidate.double(), x.double())
            return Comparison(difference=exact, precision="float64", layout=layout, first=None)
        except ModelRaisedError:
            return Comparison(difference=difference, precision="float32", layout=layout, first=None)
        finally:
            reference.float(), candidate.float()

    def _difference(self, reference: nn.Module, candidate: nn.Module, x: Tensor) -> float:
        with torch.no_grad():
            expected = self._forward(reference, x, self.target.name)
            logits = self._forward(candidate, x, self.probe.target.name)
        if logits.shape != expected.shape:
            shapes = f"{tuple(logits.shape)} against {tuple(expected.shape)}"
            problem = ValueError(f"the outputs have the shapes {shapes}; --num-classes sets both")
            raise ModelRaisedError("when it was compared", STRUCTURE_RULE, problem)
        difference = ((logits - expected).abs().max() / expected.std().clamp_min(1e-12)).item()
        return difference if math.isfinite(difference) else math.inf

    def _forward(self, model: nn.Module, x: Tensor, name: str) -> Tensor:
        torch.manual_seed(0)
        with user_code(f"in forward of {name}, input {'x'.join(map(str, self.size))}", STRUCTURE_RULE):
            return main_logits(model(x.clone()))

    def _explained(self, reference: nn.Module, candidate: nn.Module, x: Tensor, found: Comparison) -> Comparison:
        self._load(reference, candidate, found.layout)
        if found.precision == "float64":
            reference, candidate, x = reference.double(), candidate.double(), x.double()
        tolerance = EXACT if found.precision == "float64" else ROUNDED
        first = first_difference(reference, candidate, x, self.matching.counterparts, tolerance)
        return Comparison(difference=found.difference, precision=found.precision, layout=found.layout, first=first)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def randomise(model: nn.Module, uses: Uses, x: Tensor) -> None:
    """Draw every parameter that is used, and fit running statistics to what `x` (B, ...) makes, with some noise."""
    generator = torch.Generator().manual_seed(SEED)
    state = _state(model)
    for use in uses.all():
        view = use.view(state)
        if view.is_floating_point():
            view.copy_(_drawn(use, view, generator))
    with _calibrated(model, generator):
        model.eval()(x.clone())


def _drawn(use: Use, old: Tensor, generator: torch.Generator) -> Tensor:
    """New numbers for the view `old` of a parameter, of a size that keeps signals about as large as they are."""
    noise = torch.randn(old.shape, generator=generator).to(old)
    near_one = (0.5 + torch.rand(old.shape, generator=generator)).to(old)
    if use.role in ("scale", "variance") or use.operation == "mul":
        return near_one
    if use.role in ("matrix", "conv"):
        fan_in = use.size[0] if use.role == "matrix" else torch.Size(use.size[1:]).numel()
        return noise * (2 / fan_in) ** 0.5
    if use.role in ("shift", "mean"):
        return 0.2 * noise
    if use.operation in ("add", "cat", "embedding", "index"):
        return 0.5 * noise
    return old * (1 + 0.1 * noise) + 0.02 * torch.randn(old.shape, generator=generator).to(old)


@contextmanager
def _calibrated(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Meanwhile, batch norms set their running statistics to those of what they get, give or take some noise."""

    def fit(module: nn.Module, args: tuple) -> None:
        x, running_mean, running_var = args[0], module.running_mean, module.running_var
        if not isinstance(running_mean, Tensor) or not isinstance(running_var, Tensor):
            return
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x, dim=axes, unbiased=False)
        noise = torch.randn(mean.shape, generator=generator).to(x)
        near_one = (0.7 + 0.6 * torch.rand(mean.shape, generator=generator)).to(x)
        running_var.copy_(variance.clamp_min(1e-3) * near_one)
        running_mean.copy_(mean + 0.2 * noise * variance.sqrt())

    with ExitStack() as handles:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                handles.callback(module.register_forward_pre_hook(fit).remove)
        yield
