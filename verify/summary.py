"""Parameters, work and memory of a model by module, from one forward pass on the meta device: nothing is computed.

Conventions. Work is counted in multiply-adds (MACs) of products and convolutions for one sample; a multiply-add is two
floating point operations, so FLOPs as `torch.utils.flop_counter` counts them are twice as many. Normalisations,
activations, softmax and additions are not counted, as is usual. Memory is what autograd keeps of one sample for the
backward pass in train mode, parameters not included, in the dtype of the model; a tensor that several operations keep
counts once.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.modes import OperationMode
from verify.report import Table
from verify.shapes import plain_sizes

if TYPE_CHECKING:
    from verify.probe import ModelProbe

# Two samples, halved: batch norm in train mode refuses one sample of one pixel.
BATCH = 2
DEFAULT_DEPTH = 2
FUSED_ATTENTION = "_scaled_dot_product"
COLUMNS = ["module", "type", "output", "parameters", "multiply-adds", "kept for backward"]


@dataclass(kw_only=True)
class Costs:
    """By name of the innermost module that caused them; for `BATCH` samples.

    Attributes:
        macs: multiply-adds.
        kept: bytes that autograd keeps.
        shapes: name of a module -> shape of its first output.
        problem: why the forward pass did not work without numbers; empty if it did.
        train: whether it ran in train mode.
    """

    macs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    kept: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    problem: str = ""
    train: bool = True


def costs_of(model: nn.Module, size: tuple[int, ...]) -> Costs:
    """What a forward pass of a model on the meta device costs. `size` is that of one input, (C, H, W)."""
    problem = ""
    for train in (True, False):
        counter = _Counter(model)
        counter.costs.train = train
        try:
            with counter.hooks(), torch.enable_grad(), plain_sizes(), counter:
                model.train(train)(torch.empty(BATCH, *size, device="meta"))
            return counter.costs
        except Exception as error:  # what cannot run without numbers has a summary of its parameters only
            problem = problem or f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        finally:
            model.eval()
    return Costs(problem=problem)


class _Counter(OperationMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.costs = Costs()
        self.stack = [""]
        self.known = {_memory(t) for t in [*model.parameters(), *model.buffers()]}
        self.alive: list[Tensor] = []  # so that no address is used twice

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Know which module runs, and see what autograd keeps."""
        with ExitStack() as handles:
            for name, module in self.model.named_modules():
                with suppress(RuntimeError):  # a scripted module takes no hooks
                    enter = module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name))
                    handles.callback(enter.remove)
                    handles.callback(module.register_forward_hook(self._left).remove)
            handles.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor))
            yield

    def _left(self, _module: nn.Module, _args: Any, output: Any) -> None:
        name = self.stack.pop()
        first = next(_tensors(output), None)
        if first is not None:
            self.costs.shapes.setdefault(name, tuple(first.shape))

    def _keep(self, tensor: Tensor) -> Tensor:
        memory = _memory(tensor)
        if memory not in self.known:
            self.known.add(memory)
            self.alive.append(tensor)
            self.costs.kept[self.stack[-1]] += tensor.untyped_storage().nbytes()
        return tensor

    def carry_out(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Carry the operation out on shapes, and count it."""
        result = func(*args, **kwargs)
        name = func._schema.name.rpartition("::")[2]
        self.costs.macs[self.stack[-1]] += multiply_adds(name, args, result)
        return result


def multiply_adds(name: str, args: tuple[Any, ...], result: Any) -> int:
    """Multiply-adds of a primitive operation; 0 for what is not counted.

    A product (n, k) x (k, m) takes n * k * m. A convolution takes the size of one kernel for each output, or for each
    input if it is transposed. Attention takes two products.
    """
    if name in ("mm", "bmm"):
        return int(args[0].numel()) * int(args[1].shape[-1])
    if name in ("addmm", "baddbmm"):
        return int(args[1].numel()) * int(args[2].shape[-1])
    if name == "convolution":
        x, weight, transposed = args[0], args[1], args[6]
        return int((x if transposed else result).numel()) * int(weight[0].numel())
    if name.startswith(FUSED_ATTENTION):
        query, key, value = args[:3]
        return int(query.numel()) * int(key.shape[-2]) + int(query.shape[:-1].numel()) * int(value.shape[-2:].numel())
    return 0


def summary_table(probe: ModelProbe, depth: int = DEFAULT_DEPTH) -> Table:
    """The table of a model: one row for each module down to `depth` parts of a name."""
    model = probe.meta_model
    built = model is None
    if model is None:
        model = copy.deepcopy(probe.model).to("meta")
    costs = costs_of(model, probe.input_size)
    notes = [_totals(model, costs), *_conventions(costs, probe.input_size)]
    if built:
        notes.append("The model cannot be built without numbers, so it was built in memory.")
    return Table(title=f"{probe.target.name} by module", columns=COLUMNS, rows=_rows(model, costs, depth), notes=notes)


def _rows(model: nn.Module, costs: Costs, depth: int) -> list[list[str]]:
    own = _own_parameters(model)
    rows = []
    for name, module in model.named_modules():
        if name and name.count(".") >= depth:
            continue
        shape = costs.shapes.get(name)
        parameters, macs, kept = (_below(name, counts) for counts in (own, costs.macs, costs.kept))
        if not (parameters or macs or kept) and name:
            continue
        rows.append(
            [
                f"{'  ' * (name.count('.') + 1 if name else 0)}{name.rpartition('.')[2] or 'the model'}",
                type(module).__name__,
                "" if shape is None else f"({', '.join(['B', *map(str, shape[1:])])})",
                f"{parameters:,}",
                "" if costs.problem else human(macs // BATCH),
                "" if costs.problem else f"{human(kept // BATCH)}B",
            ]
        )
    return rows


def _own_parameters(model: nn.Module) -> dict[str, int]:
    """Name of a module -> parameters of its own; a shared one counts where it comes first."""
    counts: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        counts[name.rpartition(".")[0]] += parameter.numel()
    return counts


def _below(name: str, counts: dict[str, int]) -> int:
    """Sum over a module and everything inside of it."""
    return sum(count for other, count in counts.items() if not name or f"{other}.".startswith(f"{name}."))


def _totals(model: nn.Module, costs: Costs) -> str:
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    nbytes = sum(p.numel() * p.element_size() for p in parameters)
    text = f"{total:,} parameters ({trainable:,} trainable, {human(nbytes)}B)"
    if costs.problem:
        return text
    macs, kept = sum(costs.macs.values()) // BATCH, sum(costs.kept.values()) // BATCH
    return f"{text}; {human(macs)} multiply-adds ({human(2 * macs)} FLOPs) and {human(kept)}B of activations a sample"


def _conventions(costs: Costs, size: tuple[int, ...]) -> list[str]:
    if costs.problem:
        return [f"Work and memory are unknown: forward does not run on the meta device ({costs.problem})."]
    mode = "train" if costs.train else "eval"
    return [
        f"For one input of {'x'.join(map(str, size))}, in {mode} mode, from shapes alone.",
        "Multiply-adds of products and convolutions; a multiply-add is two FLOPs. Normalisations, activations and "
        "additions are not counted.",
        "Kept for backward: what autograd holds on to between the forward and the backward pass, without parameters.",
    ]


def human(number: int) -> str:
    """`17.6 G`, `1.81 M`, `512 `: three digits and a decimal prefix."""
    value, prefixes = float(number), ["", "k", "M", "G", "T", "P"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    digits = 0 if not prefixes[0] or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {prefixes[0]}"


def _memory(tensor: Tensor) -> int:
    try:
        memory: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(tensor)
    return memory


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
