"""Measures a model: each property once, when a rule first asks for it.

Everything here runs in the isolated child process (see runner.py). The user's code is only ever called inside
`user_code`, so that what it raises is told apart from a mistake of ours. Rules never call the model themselves; they
judge what is measured here.
"""

from __future__ import annotations

import copy
import io
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from verify.attention import TokenTest, never_mixing, order_dependent
from verify.dataflow import Dataflow, coarse_stem, follow_forward, is_normalised, looks_random, plain_tensors
from verify.faults import ModelRaisedError, class_location, user_code
from verify.patches import scrambled_patches
from verify.report import Table
from verify.shapes import meta_forward, plain_sizes
from verify.spec import Spec
from verify.targets import Target, TargetError

if TYPE_CHECKING:
    from verify.behaviour import Behaviour
    from verify.expectations import Expectations
    from verify.parity import Parity

# Who reports what the model's code raises.
BUILD_RULE, FORWARD_RULE, TRAINING_RULE = "MOD101", "MOD102", "GRD301"
SHAPE_BATCHES = (1, 2, 5)
EVAL_BATCH = 4
# A view that mixes batch and tokens gives each sample its own back where the number of tokens leaves 1 when divided by
# the batch; 17 and 197 tokens do for 4 samples, and neither for 5.
OTHER_BATCH = 5
# The sample that must not depend on the others: one with neighbours on both sides, because a network that runs along
# the batch carries information in one direction only, and the first sample of all has nothing before it.
SAMPLE = 2
IMAGE_SEED, DIRECTION_SEED = 7_000_000, 9_000_000
SMALL_IMAGE = 3 * 64 * 64
SMALL_IMAGE_BATCH, LARGE_IMAGE_BATCH = 8, 4
GUESSED_SIDES = (32, 224, 28, 64, 96, 128, 299, 384)
# Memorising a handful of images takes most healthy networks 3 to 50 steps at the first rate. Deep ones without
# normalisation may need the smaller one, saturating ones the larger.
# The last attempt is for models that divide their input by 255 themselves.
ATTEMPTS = ((5e-4, "unit variance"), (1e-4, "unit variance"), (1e-2, "unit variance"), (1e-2, "pixels 0 to 255"))
DEFAULT_TRAIN_STEPS = 100
# Finite differences in float64: two steps, which must agree before they are believed;
# larger ones cross the kinks of ReLU and max-pooling.
DIFFERENCE_STEPS = (1e-7, 1e-6)
DIFFERENCE_TOLERANCE = 0.01
SECANT_STEP = 1e-3
TENSORS_COMPARED = 24
# Of those that disagree, so many are looked at along so many directions; up to this share may be left out on purpose.
TENSORS_MEASURED, DIRECTIONS, LARGEST_MEANT = 3, 6, 0.25
# Noise on every parameter: freshly initialised networks stand exactly on kinks (relu(0 + 0 * x) behind a
# zero-initialised branch), where a central difference sees half a slope and autograd none.
OFF_THE_KINKS = 0.01
# What that comparison costs, in forward passes in float32.
COMPARISON_COST = 25
TOO_SLOW_IN_DOUBLE = "the passes in float64 take too long for it"
LARGEST_MOMENTUM = 0.5
LAZY = (UninitializedParameter, UninitializedBuffer)
SLOW_FORWARD = 0.05
# Of a batch of four on one thread; beyond it, no pass is made whose answer another one gives too.
HEAVY_FORWARD = 1.0
# Seconds; following every operation costs a few passes more.
SLOWEST_FOLLOWED = 2.0
FOLLOWED_BATCH = 2
# Passes in eval mode of a model that draws numbers there.
MOST_SEEDS = 40
# Relative to the largest output; sums in another order differ by far less.
ORDER_TOLERANCE = 1e-2
GPU_ROUNDING = 1e-4
OWN_ATTRIBUTES = frozenset(vars(nn.Module()))


class UnavailableError(Exception):
    """Something that another rule reports already stands in the way of this one; the text says which."""


@dataclass(kw_only=True)
class Rehearsal:
    """What happened while a copy of the model memorised a small batch.

    Attributes:
        learning_rate: Adam's.
        inputs: scale of the images, a key of `ATTEMPTS`.
        blind_loss: the lowest loss that a model can reach without looking at its input, in nats.
        initial_loss: cross entropy of the untrained model, in nats.
        first_logits: (B, C), of the untrained model in train mode.
        losses: one a step.
        accuracy: share of the batch that is right at the end, 0 to 1.
        memorised: every image right, and the loss at most half of `blind_loss`.
        out_of_time: ended by the time budget, not by the number of steps.
        non_finite: what was not finite, and at which step; empty if all was.
        reached: names of parameters that had a gradient other than None at some step.
        moved: names of parameters that had a non-zero gradient at some step.
    """

    learning_rate: float
    inputs: str
    blind_loss: float
    initial_loss: float = math.nan
    first_logits: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    memorised: bool = False
    out_of_time: bool = False
    non_finite: str = ""
    reached: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)

    def note_outputs(self, loss: float, logits: Tensor, labels: Tensor, step: int) -> None:
        """Record the mean loss and the logits (B, C) of a step."""
        if step == 1:
            self.initial_loss, self.first_logits = loss, logits
        self.losses.append(loss)
        if not math.isfinite(loss):
            self.non_finite = f"loss at step {step}"
        self.accuracy = (_predicted(logits) == labels).float().mean().item()
        self.memorised = self.accuracy == 1.0 and loss <= self.blind_loss / 2

    def note_gradients(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Record which parameters have a gradient, and whether all of them are finite."""
        for name, p in parameters.items():
            if p.grad is None:
                continue
            self.reached.add(name)
            largest = p.grad.abs().max().item()
            if largest > 0:
                self.moved.add(name)
            if not math.isfinite(largest) and not self.non_finite:
                self.non_finite = f"gradient of {name} at step {step}"


@dataclass(frozen=True)
class EvalRun:
    """What a few forward passes in eval mode showed. `x` is (B, *input_size), `logits` (B, C).

    Attributes:
        own_gradient: largest |d logits[i] / d x[i]| of the watched sample i.
        leaked_gradient: largest |d logits[i] / d x[j]|, j other than i; exactly 0 for a model that keeps samples apart.
        leaked_change: largest change of logits[i] when the other samples are replaced, relative to the largest |logit|.
        mixing_module: the first module whose output for the watched sample changed with the others.
        repeat_change: largest difference between two passes over the same batch.
        input_change: largest |logits of one batch - logits of another|.
        changed_state: floating point parameters and buffers that the passes changed.
        input_modified: whether forward wrote into its input.
        training_modules: modules still in train mode after `eval()`.
        seconds: one forward pass, wall time.
    """

    logits: Tensor
    own_gradient: float
    leaked_gradient: float
    leaked_change: float
    mixing_module: str
    repeat_change: float
    input_change: float
    changed_state: list[str]
    input_modified: bool
    training_modules: list[str]
    seconds: float


@dataclass(frozen=True)
class GradientComparison:
    """Autograd against finite differences.

    `wrong` names the parameters where they disagree, `staircase` those where they disagree because the loss jumps, as a
    rounding with a straight-through estimator makes it do on purpose. `missing` estimates what autograd leaves out of
    the gradient of the worst of them, relative to its length.
    """

    autograd: float
    difference: float
    wrong: list[str]
    staircase: list[str]
    reason_skipped: str = ""
    missing: float = 0.0

    @property
    def is_large(self) -> bool:
        """Whether the two differ by more than what a part of the model that is held fixed on purpose explains."""
        return self.missing > LARGEST_MEANT


class ModelProbe:
    """A model under test.

    Args:
        target: builds the model.
        spec: what it must be.
        device: where everything but shapes is computed.
        time_budget: seconds that memorising a batch may take when no number of steps was asked for.
        printed: how many lines the user's code has printed so far, and how the first begins.
        threads: how many to use for a model that is slow on one. On a busy machine, small operations that are shared
        out to threads take many times as long, because the threads wait for each other.
    """

    def __init__(
        self,
        target: Target,
        spec: Spec,
        device: torch.device,
        time_budget: float = 15.0,
        printed: Callable[[], tuple[int, str]] = lambda: (0, ""),
        threads: int = 1,
    ) -> None:
        self.target = target
        self.spec = spec
        self.device = device
        self.time_budget = time_budget
        self.printed = printed
        self.threads = threads
        self.notes: list[str] = list(target.notes)
        self.reference: Target | None = None  # what --like names
        self.shapes_only = False  # whether nothing but shapes and counts is asked for, which needs no numbers
        self.tables: list[Table] = []  # what rules have to show
        self.is_classifier = True

    # -- building ----------------------------------------------------------------------------------------------

    def build(self, seed: int) -> nn.Module:
        """A new model with all parameters there, on the device, initialised under `seed`."""
        model = self._build(seed).to(self.device)
        if any(isinstance(p, LAZY) for p in [*model.parameters(), *model.buffers()]):
            with torch.no_grad(), user_code("in the forward pass that initialises lazy layers", FORWARD_RULE):
                model.eval()(self.images(2))
        return model.train()

    def _build(self, seed: int) -> nn.Module:
        seed_everything(seed)
        with user_code("while it was built", BUILD_RULE):
            model = self.target.build()
        if not isinstance(model, nn.Module):
            raise TargetError(f"{self.target.name} gives a {type(model).__name__}, which is no torch.nn.Module")
        return model

    @cached_property
    def model(self) -> nn.Module:
        """The model as built, seed 0. Nothing trains it."""
        return self.build(0)

    @property
    def parity(self) -> Parity:
        """The model beside the reference that `--like` names."""
        from verify.parity import Parity

        assert self.reference is not None
        return self.__dict__.setdefault("_parity", Parity(self, self.reference))

    @property
    def expectations(self) -> Expectations:
        """What `expect:` needs to know of the model."""
        from verify.expectations import Expectations

        return self.__dict__.setdefault("_expectations", Expectations(self))

    @property
    def behaviour(self) -> Behaviour:
        """What the model does beyond its first logits."""
        from verify.behaviour import Behaviour

        return self.__dict__.setdefault("_behaviour", Behaviour(self))

    @cached_property
    def other_build(self) -> nn.Module:
        """The same model built under another seed."""
        return self.build(1)

    @cached_property
    def meta_model(self) -> nn.Module | None:
        """The model without memory, for shapes and counts; None where its constructor needs real numbers."""
        try:
            with torch.device("meta"), plain_sizes():
                model = self._build(0)
        except ModelRaisedError:
            return None
        tensors = [*model.parameters(), *model.buffers()]
        if any(isinstance(t, LAZY) or t.device.type != "meta" for t in tensors):
            return None
        return model.eval()

    def copy_of_model(self) -> nn.Module:
        """An untrained copy that may be trained; built anew where a copy cannot be made."""
        try:
            return copy.deepcopy(self.model)
        except Exception:
            return self.build(0)

    # -- parameters --------------------------------------------------------------------------------------------

    @cached_property
    def parameter_counts(self) -> tuple[int, int]:
        """(all, trainable) parameters; a shared one counts once, buffers do not count."""
        parameters = list((self.meta_model or self.model).parameters())
        return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)

    @cached_property
    def parameter_table(self) -> list[tuple[str, int]]:
        """(name, parameters) of each direct child that has any."""
        model = self.meta_model or self.model
        return [(name, sum(p.numel() for p in child.parameters())) for name, child in model.named_children()]

    @cached_property
    def frozen(self) -> dict[str, bool]:
        """Frozen parameters that the spec does not allow: name -> whether its values are random.

        Values that differ between two builds come from the initialisation, so nobody will ever have trained them;
        values that are the same in every build were loaded or are fixed on purpose, like a sinusoidal position table.
        """
        others = dict(self.other_build.named_parameters())
        return {
            name: not torch.equal(parameter, others[name])
            for name, parameter in self.model.named_parameters()
            if not parameter.requires_grad and not any(fnmatchcase(name, pattern) for pattern in self.spec.frozen)
        }

    def bias_of_trained_layer(self, name: str) -> bool:
        """Whether `name` is a bias beside a weight that does get a gradient.

        The gradient of a bias before a normalisation, or of attention's key bias, is zero by mathematics.
        """
        layer, _, leaf = name.rpartition(".")
        if "bias" not in leaf:
            return False
        siblings = [p for p in self.rehearsal.moved if p.rpartition(".")[0] == layer and p != name]
        return bool(siblings)

    @cached_property
    def unregistered(self) -> list[str]:
        """Paths such as `blocks[0]` of layers and parameters that run but are hidden in a list, tuple or dict."""
        model = self.model
        registered = {id(module) for module in model.modules()} | {id(p) for p in model.parameters()}
        hidden = [(path, item) for path, item in _hidden_items(model) if id(item) not in registered]
        if not hidden:
            return []
        ran: set[int] = set()
        hooks = [
            item.register_forward_hook(lambda module, *_: ran.add(id(module)))
            for _, item in hidden
            if isinstance(item, nn.Module)
        ]
        try:
            with torch.no_grad():
                self.forward(model.eval(), self.images(2), "in eval mode")
        finally:
            for hook in hooks:
                hook.remove()
        return [
            path
            for path, item in hidden
            if isinstance(item, nn.Parameter) or (id(item) in ran and any(True for _ in item.parameters()))
        ]

    @cached_property
    def repeated_modules(self) -> list[str]:
        """Modules with parameters that stand more than once in the same Sequential or ModuleList."""
        found = []
        for name, container in self.model.named_modules():
            if isinstance(container, nn.Sequential | nn.ModuleList):
                children = [child for child in container if any(True for _ in child.parameters())]
                repeats = len(children) - len({id(child) for child in children})
                if repeats:
                    found.append(f"{name or 'the model'} ({repeats + 1} times the same {type(children[0]).__name__})")
        return found

    @cached_property
    def unsaved_tensors(self) -> list[str]:
        """Names of tensors that are neither parameter nor saved buffer."""
        saved = set(self.model.state_dict())
        names = [name for name, _ in self.model.named_buffers() if name not in saved]
        for prefix, module in self.model.named_modules():
            names += [
                f"{prefix}.{key}".lstrip(".")
                for key, value in vars(module).items()
                if isinstance(value, Tensor) and value.is_floating_point()
            ]
        return names

    @cached_property
    def odd_momenta(self) -> list[tuple[str, float]]:
        """(name, momentum) of batch norms that give the newest batch more weight than all before it."""
        norms = [(n, m) for n, m in self.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return [(n, m.momentum) for n, m in norms if m.momentum is not None and m.momentum > LARGEST_MOMENTUM]

    # -- inputs and outputs ------------------------------------------------------------------------------------

    @cached_property
    def input_size(self) -> tuple[int, ...]:
        """(C, H, W): given, known, or the first of the usual sizes that the model accepts.

        Raises:
            ModelRaisedError: it accepts none of them; the error is that of the first, and says so.
        """
        known = self.spec.input_size or self.target.input_size
        if known:
            return tuple(known)
        first_error: ModelRaisedError | None = None
        sizes = self._candidate_sizes()
        for size in sizes:
            try:
                self._any_forward(2, size)
            except ModelRaisedError as error:
                first_error = first_error or error
                continue
            self.notes.append(f"input {'x'.join(map(str, size))} found by trial; --input-size sets another")
            return size
        assert first_error is not None
        first_error.phase += (
            f", and at {len(sizes) - 1} other usual sizes; if it takes yet another, say --input-size C,H,W"
        )
        raise first_error

    def _candidate_sizes(self) -> list[tuple[int, ...]]:
        """Sizes to try: what the first layer suggests, then the usual ones."""
        model = self.meta_model if self.meta_model is not None else self._build(0)
        usual: list[tuple[int, ...]] = [(channels, side, side) for channels in (3, 1) for side in GUESSED_SIDES]
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
        if isinstance(first, nn.Conv2d):
            return [(first.in_channels, side, side) for side in GUESSED_SIDES]
        if isinstance(first, nn.Linear):
            squares = [size for size in usual if math.prod(size) == first.in_features]
            return [*squares, (first.in_features,), *usual]
        return usual

    def images(self, batch: int, seed: int = 0, size: tuple[int, ...] | None = None) -> Tensor:
        """(batch, *input_size) smooth random pictures with noise, about zero mean and unit variance.

        White noise would look the same for every sample to a network that averages over space.
        """
        size = size or self.input_size
        # Far from the seeds of the builds: from the same seed, weights and inputs would be correlated.
        generator = torch.Generator().manual_seed(IMAGE_SEED + seed)
        noise = torch.randn(batch, *size, generator=generator)
        if len(size) != 3:
            return noise.to(self.device)
        coarse = torch.randn(batch, size[0], 4, 4, generator=generator)
        return (0.8 * F.interpolate(coarse, size=size[1:], mode="bilinear") + 0.6 * noise).to(self.device)

    def forward(self, model: nn.Module, x: Tensor, phase: str) -> Tensor:
        """The logits that `model` gives for a copy of `x`."""
        rule = TRAINING_RULE if "train" in phase else FORWARD_RULE
        with user_code(f"in forward {phase}", rule):
            return main_logits(model(x.clone()))

    def output_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the logits in eval mode, from the meta device where that works.

        Raises:
            ModelRaisedError: the model raises on real tensors too.
        """
        return self._any_forward(batch, self.input_size)

    def _any_forward(self, batch: int, size: tuple[int, ...]) -> tuple[int, ...]:
        if self.meta_model is not None:
            try:
                return tuple(main_logits(meta_forward(self.meta_model, (batch, *size))).shape)
            except SystemExit:
                pass  # say so from the real forward below, which names the phase
            except Exception:  # code that cannot run without numbers says nothing about the model
                pass
        model = self.model if self._size_is_known else self._build(0).to(self.device)
        with torch.no_grad():
            return tuple(
                self.forward(model.eval(), self.images(batch, size=size), f"at batch {batch}, input {_by(size)}").shape
            )

    @property
    def _size_is_known(self) -> bool:
        return bool(self.spec.input_size or self.target.input_size or "input_size" in self.__dict__)

    @cached_property
    def num_classes(self) -> int:
        """How many logits the model should have: as declared, else as many as it has at batch 2.

        Raises:
            UnavailableError: the output at batch 2 is not (2, C).
        """
        if self.spec.num_classes or self.target.num_classes:
            return self.spec.num_classes or self.target.num_classes or 0
        shape = self.output_shape(2)
        if len(shape) != 2 or shape[0] != 2:
            raise UnavailableError("MOD102: the output is not (batch, classes)")
        return shape[1]

    # -- eval mode ---------------------------------------------------------------------------------------------

    @cached_property
    def eval_run(self) -> EvalRun:
        """Eval mode, measured on the untrained model, or on the trained copy where the untrained one answers a
        constant.

        Zero-initialised heads and residual branches hide what lies before them until a few steps have been taken.
        """
        run = self._eval_run(self.model)
        if run.seconds > SLOW_FORWARD:
            torch.set_num_threads(self.threads)
        if run.own_gradient or not math.isfinite(run.own_gradient):
            return run
        trained = self.trained_model
        return self._eval_run(trained) if trained is not None else run

    def only_projects(self, name: str) -> bool:
        """Whether forward uses a buffer as a matrix to multiply by, and as nothing else."""
        from verify.operations import Consumers

        model = self.model.eval()
        consumers = Consumers(model.get_buffer(name))
        with torch.no_grad(), user_code("in forward in eval mode", FORWARD_RULE), consumers:
            model(self.images(EVAL_BATCH))
        return consumers.only_multiply

    @cached_property
    def drops_in_eval(self) -> bool:
        """Whether a pass in eval mode drops values, and does not only draw a sample."""
        from verify.operations import Operations

        with torch.no_grad(), user_code("in forward in eval mode", FORWARD_RULE), Operations() as operations:
            self.model.eval()(self.images(EVAL_BATCH))
        return any("dropout" in name or "bernoulli" in name for name in operations.names)

    def _eval_run(self, model: nn.Module) -> EvalRun:
        model.eval()
        training_modules = [name or "the model" for name, module in model.named_modules() if module.training]
        before = {name: t.clone() for name, t in _float_state(model)}
        x, others = self.images(EVAL_BATCH), self.images(EVAL_BATCH, seed=1)
        swapped = others.clone()
        swapped[SAMPLE] = x[SAMPLE]

        given = x.clone()
        started = time.monotonic()
        with torch.no_grad(), user_code("in forward in eval mode", FORWARD_RULE):
            seed_everything(0)
            draws = generators()
            logits = main_logits(model(given))
            draws_numbers = generators() != draws
        seconds = time.monotonic() - started
        if seconds > HEAVY_FORWARD:
            torch.set_num_threads(self.threads)
            swapped_logits, repeated, other_logits = self._few_passes(model, x, swapped, logits)
        else:
            swapped_logits, repeated, other_logits = self._passes(model, x, swapped, others)
            if draws_numbers and torch.equal(repeated, logits):
                repeated = self._under_more_seeds(model, x, logits, seconds)
        gradient = self._gradient_of_sample(model, self.images(OTHER_BATCH))
        leaked_gradient, own_gradient = _of_others(gradient), gradient[SAMPLE].abs().max().item()
        if seconds <= HEAVY_FORWARD:
            another = self._gradient_of_sample(model, x)
            leaked_gradient = max(leaked_gradient, _of_others(another))
            own_gradient = another[SAMPLE].abs().max().item()
        scale = logits.abs().max().clamp_min(torch.finfo(logits.dtype).tiny)
        leaked_change = ((swapped_logits - logits)[SAMPLE].abs().max() / scale).item()
        return EvalRun(
            logits=logits,
            own_gradient=own_gradient,
            leaked_gradient=leaked_gradient,
            leaked_change=leaked_change,
            mixing_module=self._first_mixing(model, x, swapped) if leaked_gradient or leaked_change else "",
            repeat_change=self._beyond_rounding(repeated, logits),
            input_change=_max_difference(other_logits, logits),
            changed_state=[n for n, t in _float_state(model) if n in before and not _same(t, before[n])],
            input_modified=not torch.equal(given, x),
            training_modules=training_modules,
            seconds=seconds,
        )

    @torch.no_grad()
    def _passes(self, model: nn.Module, x: Tensor, swapped: Tensor, others: Tensor) -> list[Tensor]:
        """Logits of other neighbours, of the same batch under another seed, and of another batch."""
        found = []
        for seed, images in ((0, swapped), (1, x), (0, others)):
            seed_everything(seed)
            found.append(self.forward(model, images, "in eval mode"))
        return found

    @torch.no_grad()
    def _under_more_seeds(self, model: nn.Module, x: Tensor, logits: Tensor, seconds: float) -> Tensor:
        """Logits of a model that draws numbers in eval mode, under the first seed that changes them.

        A branch that is skipped once in twenty passes is the same in most pairs of them.
        """
        for seed in range(2, 2 + min(MOST_SEEDS, int(self.time_budget / 4 / (seconds + 1e-3)))):
            seed_everything(seed)
            found = self.forward(model, x, "in eval mode")
            if not torch.equal(found, logits):
                return found
        return logits

    @torch.no_grad()
    def _few_passes(self, model: nn.Module, x: Tensor, swapped: Tensor, logits: Tensor) -> list[Tensor]:
        """The same for a heavy model: if the watched sample is equal among others and under another seed, it depends
        on neither, and its neighbours are the other batch."""
        seed_everything(1)
        found = self.forward(model, swapped, "in eval mode")
        if torch.equal(found[SAMPLE], logits[SAMPLE]):
            return [found, logits, found]
        seed_everything(1)
        return [found, self.forward(model, x, "in eval mode"), found]

    def _beyond_rounding(self, a: Tensor, b: Tensor) -> float:
        """The largest difference; 0 where it may be rounding, as a GPU need not add in the same order twice."""
        difference = _max_difference(a, b)
        if self.device.type == "cpu" or difference > GPU_ROUNDING * b.abs().max().item():
            return difference
        return 0.0

    def _gradient_of_sample(self, model: nn.Module, x: Tensor) -> Tensor:
        """d logits[SAMPLE] / d x, the shape of `x`; zero where there is no path, or no backward pass."""
        leaf = x.clone().requires_grad_()
        seed_everything(0)
        try:
            return _input_gradient(self.forward(model, leaf, "in eval mode"), leaf)
        except ModelRaisedError:
            return torch.zeros_like(leaf)  # reported with the training steps; samples are still compared by value

    @torch.no_grad()
    def _first_mixing(self, model: nn.Module, x: Tensor, swapped: Tensor) -> str:
        """The innermost module that treats the watched sample differently when the others are swapped.

        The hooks are set for this alone: modules may take another, differently rounded route when they are watched.
        """
        runs = []
        for batch in (x, swapped):
            with _watch_sample(model) as seen:
                seed_everything(0)
                self.forward(model, batch, "in eval mode")
            runs.append(seen)
        first, then = runs
        for name, before in first.items():
            after = then.get(name, before)
            if not _same(before.output, after.output):
                while name and not _same(first[name].input, then[name].input):
                    name = name.rpartition(".")[0]  # it received mixed samples, so whoever called it mixed them
                return self.describe(model, name)
        return self.describe(model, "")

    def describe(self, model: nn.Module, name: str) -> str:
        """`features.3 (BatchNorm2d)`, or `file:line Net.forward` for a module of the user's own."""
        module = model.get_submodule(name)
        place = class_location(type(module))
        own = f"{place} {type(module).__name__}.forward".strip() if place else type(module).__name__
        return f"{name} ({own})" if name else own

    # -- training ----------------------------------------------------------------------------------------------

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """A copy of the model memorises a small batch with our own Adam; the rate that gets furthest is kept.

        The initial loss, and which parameters ever had a gradient, are the same question at every rate.
        """
        attempts: list[tuple[Rehearsal, nn.Module]] = []
        started = time.monotonic()
        for rate, inputs in ATTEMPTS:
            attempt, model = self._rehearse(rate, inputs, started)
            if attempts:
                attempt.initial_loss, attempt.first_logits = attempts[0][0].initial_loss, attempts[0][0].first_logits
                attempt.reached |= attempts[-1][0].reached
                attempt.moved |= attempts[-1][0].moved
            attempts.append((attempt, model))
            if attempt.memorised or attempt.out_of_time or len(attempt.losses) == 1:
                break
        best, self._trained = max(attempts, key=lambda pair: (not pair[0].non_finite, -pair[0].losses[-1]))
        last = attempts[-1][0]
        best.reached, best.moved, best.out_of_time = last.reached, last.moved, last.out_of_time
        return best

    @property
    def trained_model(self) -> nn.Module | None:
        """The copy that memorised a batch; None if its numbers are not finite or it cannot be trained."""
        try:
            return None if self.rehearsal.non_finite else self._trained
        except (ModelRaisedError, UnavailableError):
            return None

    @property
    def exercised_model(self) -> nn.Module:
        """A model that is not as built: the one that memorised a batch, if there is one."""
        return self.trained_model or self.model

    def labels(self, batch: int) -> Tensor:
        """(batch,) class indices, as different from each other as possible."""
        return (torch.arange(batch) % max(self.num_classes, 2)).to(self.device)

    def _rehearse(self, rate: float, inputs: str, started: float) -> tuple[Rehearsal, nn.Module]:
        batch = SMALL_IMAGE_BATCH if math.prod(self.input_size) <= SMALL_IMAGE else LARGE_IMAGE_BATCH
        x, labels = self.images(batch), self.labels(batch)
        if inputs != ATTEMPTS[0][1]:
            x = (128 + 64 * x).clamp(0, 255)
        model = without_dropout(self.copy_of_model().train())
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        adam = Adam(parameters.values(), rate)
        result = Rehearsal(learning_rate=rate, inputs=inputs, blind_loss=_entropy(labels))
        seed_everything(0)
        for step in range(1, (self.spec.train_steps or DEFAULT_TRAIN_STEPS) + 1):
            with user_code(f"in forward in train mode, step {step}", TRAINING_RULE):
                output = model(x.clone())
            outputs = self._training_logits(output, batch)
            loss = sum_of_losses(outputs, labels)
            result.note_outputs(loss.item() / len(outputs), outputs[0].detach(), labels, step)
            if result.non_finite or not loss.requires_grad:
                break
            with user_code(f"in backward, step {step}", TRAINING_RULE):
                loss.backward()
            result.note_gradients(parameters, step)
            enough_seen = step >= 5 or len(result.moved) == len(parameters)
            result.out_of_time = step >= 3 and self._is_over_budget(started)
            if result.non_finite or (result.memorised and enough_seen) or result.out_of_time:
                break
            adam.step()
        return result, model

    def _training_logits(self, output: Any, batch: int) -> list[Tensor]:
        """Every (batch, classes) tensor of an output in train mode.

        Raises:
            UnavailableError: there is none, and none in eval mode either.
            ModelRaisedError: there is none in train mode only, which no other rule would notice.
        """
        try:
            return all_logits(output, batch, self.num_classes)
        except UnavailableError:
            if self.output_shape(2) != (2, self.num_classes):
                raise
        problem = TypeError(
            f"in train mode no output has the shape ({batch}, {self.num_classes}), in eval mode one has"
        )
        raise ModelRaisedError("in forward in train mode", TRAINING_RULE, problem)

    def _is_over_budget(self, started: float) -> bool:
        return self.spec.train_steps is None and time.monotonic() - started > self.time_budget

    @cached_property
    def ran_modules(self) -> set[str]:
        """Names of the modules that a forward pass in train mode calls."""
        model = self.copy_of_model().train()
        ran: set[str] = set()
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=name: ran.add(name))
        with torch.no_grad():
            self.forward(model, self.images(2), "in train mode")
        return ran

    @cached_property
    def round_trip(self) -> tuple[str, float]:
        """Save, load into another build, compare: (what went wrong, largest difference of the logits in eval mode)."""
        source = self.trained_model or self.model
        file = io.BytesIO()
        with user_code("in state_dict", "MOD106"):
            torch.save(source.state_dict(), file)
        file.seek(0)
        try:
            state = torch.load(file, weights_only=True, map_location=self.device)
        except Exception as error:
            return f"torch.load(weights_only=True) refuses it: {str(error).splitlines()[0]}", math.inf
        _ = self.frozen, self.random_state  # compare the two builds, and the next lines make them equal
        fresh = self.other_build
        try:
            fresh.load_state_dict(state)
        except Exception as error:
            return f"load_state_dict raises {type(error).__name__}: {' '.join(str(error).split())[:200]}", math.inf
        x = self.images(EVAL_BATCH)
        with torch.no_grad():
            seed_everything(0)
            expected = self.forward(source.eval(), x, "in eval mode")
            seed_everything(0)
            loaded = self.forward(fresh.eval(), x, "in eval mode")
        return "", self._beyond_rounding(loaded, expected)

    # -- the tensors of a forward pass ---------------------------------------------------------------------------

    @property
    def dataflow(self) -> Dataflow:
        """What every operation of one forward pass in eval mode reads and makes.

        Raises:
            UnavailableError: the pass takes too long or cannot be followed.
        """
        if isinstance(self._dataflow, str):
            raise UnavailableError(self._dataflow)
        return self._dataflow

    @cached_property
    def _dataflow(self) -> Dataflow | str:
        if self.eval_run.seconds > SLOWEST_FOLLOWED:
            return "one forward pass takes too long to follow its tensors"
        seed_everything(0)
        try:
            return follow_forward(self.model, self.images(FOLLOWED_BATCH))
        except Exception as error:  # scripted, compiled and quantised models need not show what they do
            return f"the forward pass cannot be followed ({type(error).__name__}: {' '.join(str(error).split())[:100]})"

    @cached_property
    def unmixed_tokens(self) -> tuple[list[TokenTest], int]:
        """Modules in which attention connects no tokens, and how many kinds were asked."""
        return never_mixing(self.dataflow.calls)

    @cached_property
    def scrambled_tokens(self) -> tuple[list[TokenTest], int]:
        """Modules with attention whose output depends on the order of the tokens, and how many kinds were asked."""
        return order_dependent(self.dataflow.calls, ORDER_TOLERANCE)

    @cached_property
    def patches_a_token(self) -> int:
        """Of how many patches a token of the first block is put together; 0 where it cannot be told."""
        sides = self.dataflow.sides
        calls = [c for c in self.dataflow.calls if c.name and c.tokens >= 4]
        if not sides or sides[0][0] != "patches" or sides[0][2] < 2 or not calls:
            return 0
        block = min(calls, key=lambda call: (call.depth, call.entered))
        seed_everything(0)
        try:
            return scrambled_patches(self.model.eval(), block.name, self.images(1), sides[0][1] // sides[0][2])
        except (RuntimeError, KeyError):  # scripted models take no hooks, and some have no gradient of their input
            return 0

    @cached_property
    def coarse_stem(self) -> tuple[int, int] | None:
        """(side after the stem, smallest side of a feature map) where the stem leaves a quarter or less."""
        return coarse_stem(self.dataflow, min(self.input_size[1:]))

    @cached_property
    def random_state(self) -> set[str]:
        """Names of float buffers and plain tensors that differ between two builds."""
        others = {**dict(self.other_build.named_buffers()), **dict(plain_tensors(self.other_build))}
        own = {**dict(self.model.named_buffers()), **dict(plain_tensors(self.model))}
        return {
            name
            for name, tensor in own.items()
            if tensor.is_floating_point()
            and name in others
            and not self._is_normalised(name)
            and others[name].shape == tensor.shape
            and not torch.equal(tensor, others[name])
        }

    def _is_normalised(self, name: str) -> bool:
        """Whether a buffer is the power iteration of a spectral norm."""
        owner, _, last = name.rpartition(".")
        modules = dict(self.model.named_modules())
        return owner in modules and is_normalised(modules[owner], last)

    @cached_property
    def random_looking(self) -> set[str]:
        """Names of plain tensors that look like random numbers, where two builds are alike and so tell nothing."""
        if not same_parameters(self.model, self.other_build):
            return set()
        return {name for name, tensor in plain_tensors(self.model) if looks_random(tensor)}

    @cached_property
    def random_buffers(self) -> set[str]:
        """Names of random buffers that forward reads and that a pass in train mode does not change."""
        random_ones = self.random_state & self.dataflow.read_buffers
        if not random_ones:
            return set()
        model = self.copy_of_model().train()
        before = {name: b.clone() for name, b in model.named_buffers() if name in random_ones}
        with torch.no_grad():
            self.forward(model, self.images(FOLLOWED_BATCH), "in train mode")
        return {name for name, b in model.named_buffers() if name in before and torch.equal(b, before[name])}

    # -- gradient against finite difference ---------------------------------------------------------------------

    @cached_property
    def gradient_comparison(self) -> GradientComparison:
        """The slope of the loss along random directions: what autograd says, and what moving there does."""
        if COMPARISON_COST * self.eval_run.seconds > self.time_budget:
            return GradientComparison(0, 0, [], [], "one forward pass takes too long for it")
        try:
            slope = _Slope(self)
        except ModelRaisedError as error:
            return GradientComparison(0, 0, [], [], f"the model does not run in float64 ({error.summary})")
        if slope.custom_functions:
            return GradientComparison(
                0, 0, [], [], "the model defines its own backward pass, which may differ on purpose"
            )
        names = list(slope.parameters)
        conclusive = False
        deadline = time.monotonic() + self.time_budget  # float64 in train mode may be far slower than the eval pass was
        for seed in (0, 1):
            if time.monotonic() > deadline:
                return GradientComparison(0, 0, [], [], TOO_SLOW_IN_DOUBLE)
            autograd, difference, agreed = slope.compare(names, seed)
            if agreed and _close(autograd, difference):
                return GradientComparison(autograd, difference, [], [])
            conclusive = conclusive or agreed
        if not conclusive:
            return GradientComparison(0, 0, [], [], "finite differences are too noisy on this model")
        return self._disagreement(slope, names, deadline)

    def _disagreement(self, slope: _Slope, names: list[str], deadline: float) -> GradientComparison:
        wrong: dict[str, float] = {}
        staircase: list[str] = []
        worst = (0.0, 0.0)
        for name in names[:: math.ceil(len(names) / TENSORS_COMPARED)]:
            if time.monotonic() > deadline:
                if wrong:
                    break
                return GradientComparison(0, 0, [], [], TOO_SLOW_IN_DOUBLE)
            autograd, difference, agreed = slope.compare([name], 2)
            if not agreed or _close(autograd, difference):
                continue
            if abs(slope.secant([name], 2) - difference) > abs(difference - autograd) / 4:
                staircase.append(name)
                continue
            wrong[name] = abs(autograd - difference)
            worst = max(worst, (autograd, difference), key=lambda pair: abs(pair[0] - pair[1]))
        missing = slope.missing_share(sorted(wrong, key=lambda name: -wrong[name])[:TENSORS_MEASURED])
        return GradientComparison(*worst, list(wrong), staircase, missing=missing)


class _Slope:
    """The loss of a float64 copy of the model as a function of its parameters; all else is held still."""

    def __init__(self, probe: ModelProbe) -> None:
        self.model = without_dropout(probe.copy_of_model().train()).double()
        self.x = probe.images(EVAL_BATCH).double()
        self.labels = probe.labels(EVAL_BATCH)
        self.classes = probe.num_classes
        self.buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        generator = torch.Generator().manual_seed(DIRECTION_SEED - 1)
        self.parameters = {
            name: (p.detach() + OFF_THE_KINKS * torch.randn(p.shape, generator=generator).to(p)).requires_grad_()
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }
        loss = self.loss(self.parameters)
        self.custom_functions = _has_custom_function(loss)
        gradients: Iterable[Tensor | None] = [None] * len(self.parameters)
        if loss.requires_grad and not self.custom_functions:
            with user_code("in backward, in float64", "GRD304"):
                gradients = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        self.gradients = dict(zip(self.parameters, gradients, strict=True))

    def loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        seed_everything(0)
        state = {**parameters, **{name: b.clone() for name, b in self.buffers.items()}}
        with user_code("in forward in train mode, in float64", "GRD304"):
            output = torch.func.functional_call(self.model, state, (self.x.clone(),))
        return sum_of_losses(all_logits(output, len(self.x), self.classes), self.labels)

    def compare(self, names: list[str], seed: int) -> tuple[float, float, bool]:
        """(autograd, finite difference, whether two step sizes agree) along a random direction in `names`."""
        direction = self._direction(names, seed)
        products = ((self.gradients[n], d) for n, d in direction.items())
        autograd = sum((g * d).sum().item() for g, d in products if g is not None)
        near, far = (self._difference(direction, step) for step in DIFFERENCE_STEPS)
        return autograd, near, _close(near, far)

    def missing_share(self, names: list[str]) -> float:
        """|autograd's gradient - the slope| / |the slope|, from random directions in each of a few parameters."""
        errors = slopes = 0.0
        for name in names:
            for seed in range(2, 2 + DIRECTIONS):
                autograd, difference, _ = self.compare([name], seed)
                errors += (autograd - difference) ** 2
                slopes += difference**2
        return math.sqrt(errors / slopes) if slopes else 0.0

    def secant(self, names: list[str], seed: int) -> float:
        """The slope over a longer stretch of the same direction; a smooth loss has nearly the same one."""
        return self._difference(self._direction(names, seed), SECANT_STEP)

    def _direction(self, names: list[str], seed: int) -> dict[str, Tensor]:
        """A random direction, in each tensor as long as the tensor itself."""
        generator = torch.Generator().manual_seed(DIRECTION_SEED + seed)
        direction = {}
        for name in names:
            p = self.parameters[name]
            unit = torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
            direction[name] = unit * (p.detach().norm().clamp_min(1.0) / unit.norm())
        return direction

    def _difference(self, direction: Mapping[str, Tensor], step: float) -> float:
        def at(offset: float) -> float:
            moved = {n: self.parameters[n] + offset * d for n, d in direction.items()}
            return self.loss({**self.parameters, **moved}).item()

        with torch.no_grad():
            return (at(step) - at(-step)) / (2 * step)


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1); constructing any of torch.optim's imports the compiler, which takes 1 s."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient, and clear the gradients."""
        self.steps += 1
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for p, (mean, square) in zip(self.parameters, self.moments, strict=True):
            if p.grad is None:
                continue
            mean.lerp_(p.grad, 1 - beta1)
            square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            denominator = (square / correction2).sqrt_().add_(epsilon)
            p.addcdiv_(mean, denominator, value=-self.learning_rate / correction1)
            p.grad = None


# -- outputs -----------------------------------------------------------------------------------------------------


def main_logits(output: Any) -> Tensor:
    """The logits among what a model returned: the tensor itself, or `.logits`, `["logits"]`, `["out"]`, or the first
    tensor.

    Raises:
        TypeError: there is no tensor in it.
    """
    for tensor in _tensors_of(output):
        return tensor
    raise TypeError(
        f"forward returns a {type(output).__name__} without a tensor in it; logits (batch, classes) are needed"
    )


def all_logits(output: Any, batch: int, num_classes: int) -> list[Tensor]:
    """Every (batch, num_classes) tensor of the output: auxiliary heads are trained too.

    Raises:
        UnavailableError: there is none.
    """
    fitting = [t for t in _tensors_of(output) if tuple(t.shape) == (batch, num_classes)]
    if not fitting:
        raise UnavailableError("MOD102: the output is not (batch, classes)")
    return fitting


def _tensors_of(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
        return
    if isinstance(output, Mapping):
        first = [output[key] for key in ("logits", "out") if key in output]
        for value in [*first, *output.values()]:
            yield from _tensors_of(value)
        return
    if hasattr(output, "logits"):
        yield from _tensors_of(output.logits)
    if isinstance(output, list | tuple):
        for value in output:
            yield from _tensors_of(value)


def sum_of_losses(outputs: list[Tensor], labels: Tensor) -> Tensor:
    """Cross entropy over classes, or binary cross entropy for a single logit, summed over the heads."""
    if outputs[0].shape[1] == 1:
        losses = [F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits)) for logits in outputs]
    else:
        losses = [F.cross_entropy(logits, labels) for logits in outputs]
    return torch.stack(losses).sum()


def _predicted(logits: Tensor) -> Tensor:
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


# -- helpers -----------------------------------------------------------------------------------------------------


def generators() -> tuple[Any, ...]:
    """What tells the states of all generators apart; equal before and after a pass that draws no number."""
    numpy = sys.modules.get("numpy")
    parts: list[Any] = [hash(random.getstate()), hash(tuple(torch.get_rng_state().tolist()))]
    if numpy is not None:
        parts.append(hash(str(numpy.random.get_state())))
    if torch.cuda.is_initialized():
        parts.append(hash(tuple(torch.cuda.get_rng_state().tolist())))
    return tuple(parts)


def seed_everything(seed: int) -> None:
    """Seed torch on every device, and Python's `random`, which constructors use too."""
    random.seed(seed)
    torch.manual_seed(seed)


def _of_others(gradient: Tensor) -> float:
    """The largest gradient with respect to another sample than the watched one."""
    return torch.cat([gradient[:SAMPLE], gradient[SAMPLE + 1 :]]).abs().max().item()


def _entropy(labels: Tensor) -> float:
    """Entropy of the label frequencies in nats: the loss of the best model that cannot see its input."""
    return torch.special.entr(torch.bincount(labels) / len(labels)).sum().item()


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _max_difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    difference = (a - b).abs()
    both_nan = a.isnan() & b.isnan()
    return difference.masked_fill(both_nan, 0).max().item() if a.numel() else 0.0


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return True  # nothing to compare
    scale = a.abs().max().item() if a.numel() else 0.0
    return _max_difference(a, b) <= 1e-5 * scale


def same_parameters(model: nn.Module, other: nn.Module) -> bool:
    """Whether two builds have the same numbers, as copies of one model do."""
    others = dict(other.named_parameters())
    return all(name not in others or _same(p, others[name]) for name, p in model.named_parameters())


def _float_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            yield name, tensor.detach()


def _input_gradient(logits: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of the watched sample's logits with respect to `leaf`, zero where there is no path."""
    if not logits.requires_grad:
        return torch.zeros_like(leaf)
    # A random weighting: the sum of a softmax is constant, and its gradient would vanish.
    watched = logits[SAMPLE]
    weights = torch.linspace(0.5, 1.5, watched.numel(), device=logits.device).reshape(watched.shape)
    with user_code("in backward in eval mode", TRAINING_RULE):
        (gradient,) = torch.autograd.grad((watched * weights).sum(), leaf, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def without_dropout(model: nn.Module) -> nn.Module:
    """Switch dropout and stochastic depth off: a probe must not depend on which units were dropped."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if "drop" in type(module).__name__.lower() or "stochasticdepth" in type(module).__name__.lower():
            for attribute in ("p", "drop_prob"):
                if isinstance(getattr(module, attribute, None), float):
                    setattr(module, attribute, 0.0)
    return model


def _hidden_items(model: nn.Module) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Modules and parameters inside the plain lists, tuples and dicts that are attributes of a module."""
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in OWN_ATTRIBUTES:
                yield from _items_within(f"{prefix}.{key}".lstrip("."), value, depth=3)


def _items_within(path: str, value: Any, depth: int) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    if depth == 0 or not isinstance(value, list | tuple | dict):
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        inner = f"{path}[{key!r}]"
        if isinstance(item, nn.Module | nn.Parameter):
            yield inner, item
        else:
            yield from _items_within(inner, item, depth - 1)


@dataclass(frozen=True)
class _Seen:
    input: Tensor | None
    output: Tensor | None


@contextmanager
def _watch_sample(model: nn.Module) -> Iterator[dict[str, _Seen]]:
    """Record what each module receives and returns for the watched sample, in the order in which they finish."""
    seen: dict[str, _Seen] = {}

    def sample(value: Any) -> Tensor | None:
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == EVAL_BATCH:
            return value[SAMPLE].detach().clone()
        return None

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if name not in seen:
                seen[name] = _Seen(sample(args), sample(output))

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()


def _has_custom_function(loss: Tensor) -> bool:
    """Whether a `torch.autograd.Function` of somebody's own is part of the graph."""
    waiting, visited = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        visited.add(node)
        waiting += [parent for parent, _ in node.next_functions]
    return False


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= DIFFERENCE_TOLERANCE * max(abs(a), abs(b)) + 1e-7
