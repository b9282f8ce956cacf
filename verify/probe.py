"""Measures a model: each property once, when a rule first asks for it.

Everything here runs in the isolated child process (see runner.py). The user's code is only ever called inside
`user_code`, so that what it raises is told apart from a mistake of ours. Rules never call the model themselves; they
judge what is measured here.
"""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from verify.attention import TokenTest, never_mixing, order_dependent
from verify.comparing import same_parameters, same_tensor, seed_everything
from verify.dataflow import Dataflow, coarse_stem, follow_forward, is_normalised, looks_random, plain_tensors
from verify.evaluated import EVAL_BATCH, LARGE_BATCH, EvalRun, beyond_rounding, evaluate, with_hidden_branches
from verify.faults import (
    BUILD_RULE,
    FORWARD_RULE,
    TRAINING_RULE,
    ModelExitedError,
    ModelRaisedError,
    UnavailableError,
    class_location,
    user_code,
)
from verify.outputs import main_logits
from verify.patches import scrambled_patches
from verify.rehearsal import ATTEMPTS, Rehearsal, rehearse
from verify.report import Table
from verify.shapes import meta_forward, plain_sizes
from verify.slope import GradientComparison, compare_gradients
from verify.spec import Spec
from verify.summary import BATCH, Costs, costs_of
from verify.targets import Target, TargetError
from verify.tokens import Pass, with_noise

if TYPE_CHECKING:
    from verify.behaviour import Behaviour
    from verify.expectations import Expectations
    from verify.parity import Parity

SHAPE_BATCHES = (1, 2, 5)
IMAGE_SEED = 7_000_000
GUESSED_SIDES = (32, 224, 28, 64, 96, 128, 299, 384)
LARGEST_MOMENTUM = 0.5
LAZY = (UninitializedParameter, UninitializedBuffer)
SLOW_FORWARD = 0.05
# Seconds; following every operation costs a few passes more.
SLOWEST_FOLLOWED = 2.0
FOLLOWED_BATCH = 2
# Relative to the largest output; sums in another order differ by far less.
ORDER_TOLERANCE = 1e-2
# Multiply-adds of one image, or parameters where those cannot be counted; beyond it, every question gets the fewest
# passes that answer it. ResNet-18 at 224 pixels has 1.8e9, ResNet-50 4.1e9, ViT-B/16 17e9.
LARGE_WORK, LARGE_COUNT = 2e9, 25e6
# Of memorising a batch; whoever allows more (--full) has the time for all passes.
MOST_SECONDS_OF_FEW_PASSES = 20.0
OWN_ATTRIBUTES = frozenset(vars(nn.Module()))


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
        self.reloaded_alike: nn.Module | None = None  # a large one, if loading is known to change nothing
        self._followed_pass: Pass | None = None
        self.device_error: ModelRaisedError | None = None  # of a forward pass on a GPU; the CPU does not raise it
        self.fresh_names: dict[int, set[str]] = {}  # seed -> names of the parameters before the first pass

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
        self.fresh_names[seed] = {name for name, _ in model.named_parameters()}
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

    def settle_device(self) -> None:
        """Go back to the CPU where the model runs there and not on the device, so that the rules can say why."""
        if self.device.type == "cpu" or self.shapes_only:
            return
        wanted, raised = self.device, self._raised_in_forward()
        if not isinstance(raised, ModelRaisedError):
            return
        self._move_to(torch.device("cpu"))
        if self._raised_in_forward() is not None:
            self._move_to(wanted)
            return
        self.device_error = raised
        self.notes.append("checked on the CPU, because forward raises on the GPU")

    def _raised_in_forward(self) -> Exception | None:
        try:
            with torch.no_grad():
                self.forward(self.model.eval(), self.images(2), "in eval mode")
        except (ModelRaisedError, ModelExitedError, UnavailableError) as error:
            return error
        return None

    def _move_to(self, device: torch.device) -> None:
        self.device = device
        self.__dict__.pop("model", None)

    @cached_property
    def builds_alike(self) -> bool:
        """Whether two builds under different seeds have the same parameters."""
        return same_parameters(self.model, self.other_build)

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

    @cached_property
    def uncovered_model(self) -> nn.Module:
        """A copy in eval mode with noise on its parameters, or the model itself if it is large and lacks none. Nothing
        trains it."""
        if not self.is_large:
            return with_noise(self.copy_of_model())
        if not self.switches:
            return self.model.eval()
        shared = {id(p): p for name, p in self.model.named_parameters() if name not in self.switches}
        return with_noise(copy.deepcopy(self.model, shared), self.switches)

    def without_numbers(self, x: Tensor, *, train: bool) -> tuple[nn.Module, Tensor] | None:
        """A copy of a large model, and `x`, on the meta device, for a pass that is about operations and shapes alone.

        None where numbers are cheap, or needed, in train mode perhaps only there.
        """
        if not self.is_large or self.meta_model is None or self.meta_costs is None:
            return None
        if train and not self.meta_costs.train:
            return None
        with suppress(Exception):  # a model that keeps tensors of its last pass cannot be copied
            return copy.deepcopy(self.meta_model), x.to("meta")
        return None

    def reloaded(self, model: nn.Module) -> nn.Module | None:
        """A large model that is built without numbers and gets all of them from the state dict of `model`, in eval
        mode; None where it does not take them. Spares the initialisation, which takes as long as a pass."""
        if not self.is_large or self.meta_model is None:
            return None
        try:
            fresh, state = copy.deepcopy(self.meta_model), model.state_dict()
            fresh.load_state_dict(state, assign=True)
        except Exception:  # reported with the round trip
            return None
        return fresh.eval() if all(type(value) is Tensor for value in state.values()) else None

    @cached_property
    def switches(self) -> list[str]:
        """Names of weights of zeros, which switch off what they multiply until a step has been taken.

        Tables (1, N, D), as of positions and queries, are added; and where all are zeros, there is nothing to switch.
        """
        weights = {n: p for n, p in self.model.named_parameters() if p.requires_grad and n.rpartition(".")[2] != "bias"}
        multiply = {n: p for n, p in weights.items() if not (p.dim() == 3 and len(p) == 1)}
        zeros = [n for n, p in multiply.items() if p.is_floating_point() and p.numel() > 1 and _is_zero(p)]
        return zeros if len(zeros) < len(weights) else []

    @cached_property
    def is_large(self) -> bool:
        """Whether a pass costs so much that every question gets the fewest passes that answer it."""
        if self.device.type != "cpu" or self.spec.train_steps or self.time_budget > MOST_SECONDS_OF_FEW_PASSES:
            return False
        if self.meta_costs is None:
            return self.parameter_counts[0] > LARGE_COUNT
        return sum(self.meta_costs.macs.values()) / BATCH > LARGE_WORK

    @cached_property
    def meta_costs(self) -> Costs | None:
        """What a pass of the model without memory costs; None where there is none, or where it needs numbers."""
        if self.meta_model is None:
            return None
        costs = costs_of(self.meta_model, self.input_size)
        return None if costs.problem else costs

    @property
    def model_that_ran(self) -> nn.Module:
        """What `eval_run` is about."""
        _ = self.eval_run
        return self._evaluated

    @property
    def eval_batch(self) -> int:
        """Images in a pass in eval mode."""
        return LARGE_BATCH if self.is_large else EVAL_BATCH

    # -- parameters --------------------------------------------------------------------------------------------

    @cached_property
    def parameter_counts(self) -> tuple[int, int]:
        """(all, trainable) parameters; a shared one counts once, buffers do not count."""
        parameters = list((self.meta_model or self.model).parameters())
        return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)

    @cached_property
    def parameter_table(self) -> list[tuple[str, int]]:
        """(name, parameters) of each direct child, and of each parameter that the model holds itself."""
        model = self.meta_model or self.model
        own = [(name, p.numel()) for name, p in model.named_parameters(recurse=False)]
        return own + [(name, sum(p.numel() for p in child.parameters())) for name, child in model.named_children()]

    @cached_property
    def frozen(self) -> dict[str, bool]:
        """Frozen parameters that the spec does not allow: name -> whether its values are random.

        Values that differ between two builds come from the initialisation, so nobody will ever have trained them;
        values that are the same in every build were loaded or are fixed on purpose, like a sinusoidal position table.
        """
        frozen = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if not parameter.requires_grad and not any(fnmatchcase(name, pattern) for pattern in self.spec.frozen)
        }
        others = dict(self.other_build.named_parameters()) if frozen else {}
        return {name: not torch.equal(parameter, others[name]) for name, parameter in frozen.items()}

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

        Zero-initialised heads and residual branches hide what lies before them until a few steps have been taken; where
        they hide a branch only, a copy with noise on its parameters shows it. Of a large model that has any, that copy
        alone is measured.
        """
        if self.is_large and self.switches:
            self._evaluated = self.uncovered_model
            return evaluate(self, self._evaluated)
        run = evaluate(self, self.model)
        self._evaluated = self.model
        if run.seconds > SLOW_FORWARD:
            torch.set_num_threads(self.threads)
        if run.own_gradient or not math.isfinite(run.own_gradient):
            return with_hidden_branches(self, run)
        # Where it cannot be trained, as with labels that it has no logits for, noise uncovers what zeros hide.
        self._evaluated = self.trained_model or self.uncovered_model
        return evaluate(self, self._evaluated)

    def only_projects(self, name: str) -> bool:
        """Whether forward uses a buffer as a matrix to multiply by, and as nothing else."""
        from verify.operations import Consumers

        model = self.model.eval()
        consumers = Consumers(model.get_buffer(name))
        with torch.no_grad(), user_code("in forward in eval mode", FORWARD_RULE), consumers:
            model(self.images(self.eval_batch))
        return consumers.only_multiply

    @cached_property
    def drops_in_eval(self) -> bool:
        """Whether a pass in eval mode drops values, and does not only draw a sample."""
        from verify.operations import Operations

        with torch.no_grad(), user_code("in forward in eval mode", FORWARD_RULE), Operations() as operations:
            self.model.eval()(self.images(self.eval_batch))
        return any("dropout" in name or "bernoulli" in name for name in operations.names)

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

        A large model takes the first steps only. The initial loss, and which parameters ever had a gradient, are the
        same question at every rate.
        """
        attempts: list[tuple[Rehearsal, nn.Module]] = []
        started = time.monotonic()
        for rate, inputs in ATTEMPTS:
            attempt, model = rehearse(self, rate, inputs, started)
            if attempts:
                attempt.initial_loss, attempt.first_logits = attempts[0][0].initial_loss, attempts[0][0].first_logits
                attempt.reached |= attempts[-1][0].reached
                attempt.moved |= attempts[-1][0].moved
            attempts.append((attempt, model))
            if attempt.memorised or attempt.out_of_time or attempt.cut_short or len(attempt.losses) == 1:
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
        source = self._saved_model
        if self.reloaded_alike is source:
            return "", 0.0
        file = io.BytesIO()
        with user_code("in state_dict", "MOD106"):
            torch.save(source.state_dict(), file)
        file.seek(0)
        try:
            state = torch.load(file, weights_only=True, map_location=self.device)
        except Exception as error:
            return f"torch.load(weights_only=True) refuses it: {str(error).splitlines()[0]}", math.inf
        _ = self.frozen, self.random_state, self.builds_alike  # the next lines make the two builds equal
        fresh = self.other_build
        try:
            fresh.load_state_dict(state)
        except Exception as error:
            return f"load_state_dict raises {type(error).__name__}: {' '.join(str(error).split())[:200]}", math.inf
        x = self.images(self.eval_batch)
        with torch.no_grad():
            seed_everything(0)
            expected = self.forward(source.eval(), x, "in eval mode")
            seed_everything(0)
            loaded = self.forward(fresh.eval(), x, "in eval mode")
        return "", beyond_rounding(self, loaded, expected)

    @property
    def _saved_model(self) -> nn.Module:
        """The trained copy; of a large model the one whose logits are known already, if training changed no buffer."""
        trained = self.trained_model
        if trained is None or not self.is_large:
            return trained or self.model
        buffers, ran = dict(trained.named_buffers()), self.model_that_ran
        unchanged = all(n in buffers and same_tensor(b, buffers[n]) for n, b in ran.named_buffers())
        return ran if unchanged else trained

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
        shared = self.is_large and not self.eval_run.repeat_change and len(self.input_size) == 3
        seed_everything(0)
        try:
            if shared:
                with suppress(Exception):  # some models run without gradients alone
                    return follow_forward(self.uncovered_model, self.images(FOLLOWED_BATCH), self._pass_of_tokens)
            return follow_forward(self.model, self.images(FOLLOWED_BATCH))
        except Exception as error:  # scripted, compiled and quantised models need not show what they do
            return f"the forward pass cannot be followed ({type(error).__name__}: {' '.join(str(error).split())[:100]})"

    def _pass_of_tokens(self, x: Tensor) -> Any:
        """A pass over `x` of which the graph is kept; what the model returned."""
        self._followed_pass = Pass(self.uncovered_model, x, main_logits)
        return self._followed_pass.output

    @cached_property
    def token_pass(self) -> Pass:
        """A pass of which the graph is kept; of a large model that in which its tensors were followed."""
        if self.is_large and not isinstance(self._dataflow, str) and self._followed_pass is not None:
            return self._followed_pass
        seed_everything(0)
        return Pass(self.uncovered_model, self.images(FOLLOWED_BATCH), main_logits)

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
        own = {**dict(self.model.named_buffers()), **dict(plain_tensors(self.model))}
        if not any(tensor.is_floating_point() for tensor in own.values()):
            return set()
        others = {**dict(self.other_build.named_buffers()), **dict(plain_tensors(self.other_build))}
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
        found = {name for name, tensor in plain_tensors(self.model) if looks_random(tensor)}
        return found if found and self.builds_alike else set()

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

    @cached_property
    def gradient_comparison(self) -> GradientComparison:
        """The slope of the loss along random directions: what autograd says, and what moving there does."""
        return compare_gradients(self)


# -- helpers -----------------------------------------------------------------------------------------------------


def _is_zero(tensor: Tensor) -> bool:
    return not tensor[(0,) * tensor.dim()] and not tensor.any()  # the first number alone tells most of them


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


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
