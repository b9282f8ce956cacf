"""What forward passes in eval mode show: samples kept apart, the same answer twice, nothing changed on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.comparing import float_state, generators, max_difference, same_tensor, seed_everything
from verify.faults import FORWARD_RULE, TRAINING_RULE, ModelRaisedError, user_code
from verify.outputs import main_logits

if TYPE_CHECKING:
    from verify.probe import ModelProbe

EVAL_BATCH = 4
# A view that mixes batch and tokens gives each sample its own back where the number of tokens leaves 1 when divided by
# the batch; 17 and 197 tokens do for 4 samples, and neither for 5.
OTHER_BATCH = 5
# The sample that must not depend on the others: one with neighbours on both sides, because a network that runs along
# the batch carries information in one direction only, and the first sample of all has nothing before it.
SAMPLE = 2
# The same of a large model: a sample, and one before it.
LARGE_BATCH, LARGE_SAMPLE = 2, 1
# Of a batch of four on one thread; beyond it, no pass is made whose answer another one gives too.
HEAVY_FORWARD = 1.0
# Passes in eval mode of a model that draws numbers there.
MOST_SEEDS = 40
GPU_ROUNDING = 1e-4


@dataclass(frozen=True)
class EvalRun:
    """What a few forward passes in eval mode showed. `x` is (B, *input_size), `logits` (B, C).

    Attributes:
        own_gradient: largest |d logits[i] / d x[i]| of the watched sample i; of a large model that keeps samples apart
        it is the change of the logits from one batch to another.
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


def evaluate(probe: ModelProbe, model: nn.Module) -> EvalRun:
    """Pass a batch through a model in eval mode, alone, beside other neighbours, and once more."""
    model.eval()
    training_modules = [name or "the model" for name, module in model.named_modules() if module.training]
    # To keep a copy of a large model and compare it takes half as long as a pass.
    kept = torch.sum if probe.is_large else torch.clone
    before = {name: kept(tensor) for name, tensor in float_state(model)}
    batch, sample = probe.eval_batch, LARGE_SAMPLE if probe.is_large else SAMPLE
    x, others = probe.images(batch), probe.images(batch, seed=1)
    swapped = others.clone()
    swapped[sample] = x[sample]

    given = x.clone()
    started = time.monotonic()
    with torch.no_grad(), user_code("in forward in eval mode", FORWARD_RULE):
        seed_everything(0)
        draws = generators()
        logits = main_logits(model(given))
        draws_numbers = generators() != draws
    seconds = time.monotonic() - started
    few = seconds > HEAVY_FORWARD or probe.is_large
    if seconds > HEAVY_FORWARD:
        torch.set_num_threads(probe.threads)
    if few:
        swapped_logits, repeated, other_logits = _few_passes(probe, model, swapped, logits, sample)
    else:
        swapped_logits, repeated, other_logits = _passes(probe, model, x, swapped, others)
    if draws_numbers and torch.equal(repeated, logits):
        repeated = _under_more_seeds(probe, model, x, logits, seconds)
    input_change = max_difference(other_logits, logits)
    leaked_gradient, own_gradient = 0.0, input_change
    if not (probe.is_large and own_gradient and torch.equal(swapped_logits[sample], logits[sample])):
        batches = [probe.images(OTHER_BATCH)] if few else [probe.images(OTHER_BATCH), x]
        for images in batches:
            gradient = _gradient_of_sample(probe, model, images, sample)
            leaked_gradient = max(leaked_gradient, _of_others(gradient, sample))
            own_gradient = gradient[sample].abs().max().item()
    scale = logits.abs().max().clamp_min(torch.finfo(logits.dtype).tiny)
    leaked_change = ((swapped_logits - logits)[sample].abs().max() / scale).item()
    return EvalRun(
        logits=logits,
        own_gradient=own_gradient,
        leaked_gradient=leaked_gradient,
        leaked_change=leaked_change,
        mixing_module=_first_mixing(probe, model, x, swapped, sample) if leaked_gradient or leaked_change else "",
        repeat_change=beyond_rounding(probe, repeated, logits),
        input_change=input_change,
        changed_state=[n for n, t in float_state(model) if n in before and not same_tensor(kept(t), before[n])],
        input_modified=not torch.equal(given, x),
        training_modules=training_modules,
        seconds=seconds,
    )


def with_hidden_branches(probe: ModelProbe, run: EvalRun) -> EvalRun:
    """The same, with what the branches do that a parameter of zeros switches off at the start."""
    seen = run.leaked_gradient or run.leaked_change or run.repeat_change
    if seen or not probe.switches or not math.isfinite(run.own_gradient) or run.seconds > HEAVY_FORWARD:
        return run
    try:
        shown = evaluate(probe, probe.uncovered_model)
    except Exception:  # a copy that cannot be made, or that noise breaks, shows nothing
        return run
    if not shown.logits.isfinite().all():
        return run
    return replace(
        run,
        leaked_gradient=shown.leaked_gradient,
        leaked_change=shown.leaked_change,
        mixing_module=shown.mixing_module,
        repeat_change=shown.repeat_change,
    )


@torch.no_grad()
def _passes(probe: ModelProbe, model: nn.Module, x: Tensor, swapped: Tensor, others: Tensor) -> list[Tensor]:
    """Logits of other neighbours, of the same batch under another seed, and of another batch."""
    found = []
    for seed, images in ((0, swapped), (1, x), (0, others)):
        seed_everything(seed)
        found.append(probe.forward(model, images, "in eval mode"))
    return found


@torch.no_grad()
def _under_more_seeds(probe: ModelProbe, model: nn.Module, x: Tensor, logits: Tensor, seconds: float) -> Tensor:
    """Logits of a model that draws numbers in eval mode, under the first seed that changes them.

    A branch that is skipped once in twenty passes is the same in most pairs of them.
    """
    for seed in range(2, 2 + min(MOST_SEEDS, int(probe.time_budget / 4 / (seconds + 1e-3)))):
        seed_everything(seed)
        found = probe.forward(model, x, "in eval mode")
        if not torch.equal(found, logits):
            return found
    return logits


@torch.no_grad()
def _few_passes(probe: ModelProbe, model: nn.Module, swapped: Tensor, logits: Tensor, sample: int) -> list[Tensor]:
    """The same for a heavy model: if the watched sample is equal among others and under another seed, it depends
    on neither, and its neighbours are the other batch. If it is equal after saving and loading too, that needs no pass
    of its own."""
    reloaded = probe.reloaded(model)
    if reloaded is not None:
        seed_everything(1)
        with suppress(Exception):  # a tensor that is in no state dict has no numbers
            found = main_logits(reloaded(swapped.clone()))
            if torch.equal(found[sample], logits[sample]):
                probe.reloaded_alike = model
                return [found, logits, found]
    seed_everything(1)
    found = probe.forward(model, swapped, "in eval mode")
    if torch.equal(found[sample], logits[sample]):
        return [found, logits, found]
    seed_everything(1)
    return [found, probe.forward(model, probe.images(len(swapped)), "in eval mode"), found]


def beyond_rounding(probe: ModelProbe, a: Tensor, b: Tensor) -> float:
    """The largest difference; 0 where it may be rounding, as a GPU need not add in the same order twice."""
    difference = max_difference(a, b)
    if probe.device.type == "cpu" or difference > GPU_ROUNDING * b.abs().max().item():
        return difference
    return 0.0


def _gradient_of_sample(probe: ModelProbe, model: nn.Module, x: Tensor, sample: int) -> Tensor:
    """d logits[sample] / d x, the shape of `x`; zero where there is no path, or no backward pass.

    Integers have no gradient: samples are then told apart by value alone.
    """
    if not x.is_floating_point():
        own = torch.zeros(x.shape)
        own[sample] = 1.0
        return own
    leaf = x.clone().requires_grad_()
    seed_everything(0)
    try:
        return _input_gradient(probe.forward(model, leaf, "in eval mode"), leaf, sample)
    except ModelRaisedError:
        return torch.zeros_like(leaf)  # reported with the training steps; samples are still compared by value


@torch.no_grad()
def _first_mixing(probe: ModelProbe, model: nn.Module, x: Tensor, swapped: Tensor, sample: int) -> str:
    """The innermost module that treats the watched sample differently when the others are swapped.

    The hooks are set for this alone: modules may take another, differently rounded route when they are watched.
    """
    runs = []
    for batch in (x, swapped):
        with _watch_sample(model, len(x), sample) as seen:
            seed_everything(0)
            probe.forward(model, batch, "in eval mode")
        runs.append(seen)
    first, then = runs
    for name, before in first.items():
        after = then.get(name, before)
        if not same_tensor(before.output, after.output):
            while name and not same_tensor(first[name].input, then[name].input):
                name = name.rpartition(".")[0]  # it received mixed samples, so whoever called it mixed them
            return probe.describe(model, name)
    return probe.describe(model, "")


@dataclass(frozen=True)
class _Seen:
    input: Tensor | None
    output: Tensor | None


@contextmanager
def _watch_sample(model: nn.Module, batch: int, sample: int) -> Iterator[dict[str, _Seen]]:
    """Record what each module receives and returns for the watched sample, in the order in which they finish."""
    seen: dict[str, _Seen] = {}

    def watched(value: Any) -> Tensor | None:
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == batch:
            return value[sample].detach().clone()
        return None

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if name not in seen:
                seen[name] = _Seen(watched(args), watched(output))

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()


def _of_others(gradient: Tensor, sample: int) -> float:
    """The largest gradient with respect to another sample than the watched one."""
    return torch.cat([gradient[:sample], gradient[sample + 1 :]]).abs().max().item()


def _input_gradient(logits: Tensor, leaf: Tensor, sample: int) -> Tensor:
    """The gradient of the watched sample's logits with respect to `leaf`, zero where there is no path."""
    if not logits.requires_grad:
        return torch.zeros_like(leaf)
    # A random weighting: the sum of a softmax is constant, and its gradient would vanish.
    watched = logits[sample]
    weights = torch.linspace(0.5, 1.5, watched.numel(), device=logits.device).reshape(watched.shape)
    with user_code("in backward in eval mode", TRAINING_RULE):
        (gradient,) = torch.autograd.grad((watched * weights).sum(), leaf, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient
