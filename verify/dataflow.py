"""Follows the tensors of one forward pass: what every operation reads, where that comes from, and in which module.

A pass is watched below autograd, where `einsum`, `@` and `scaled_dot_product_attention` have become a handful of
primitive operations, so it does not matter how a model is written. A tensor is known by the memory that it shows
(storage, offset, sizes, strides) and not by the Python object, because views are new objects over the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_parameter_registration_hook

from verify.attention import MATMULS, Attention, AttentionTracker, Operation
from verify.comparing import storage_of
from verify.linear import Layer, LinearTracker, SparseTable
from verify.modes import OperationMode

# Smaller tensors are constants such as the mean and standard deviation of the channels.
SMALLEST_TABLE = 9
# Of numbers that look drawn: 1.8 is that of a uniform variable, 3 that of a normal one.
SMALLEST_SAMPLE = 64
KURTOSES = (1.5, 4.5)
LARGEST_SKEWNESS = 0.5
ACTIVATIONS = frozenset({
    "relu", "hardtanh", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "sigmoid", "tanh", "softplus",
})  # fmt: skip
# What keeps a tensor that has no negative number free of them.
KEEPS_SIGN = frozenset(
    {"clone", "mean", "cat", "add", "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d"}
)
POOLINGS = frozenset({"max_pool2d_with_indices", "max_pool2d", "mkldnn_max_pool2d", "avg_pool2d"})
# Operations that treat places of a sequence differently, or that tell them apart.
ORDER_OPERATIONS = frozenset({
    "roll", "flip", "cumsum", "cumprod", "sort", "argsort", "topk", "gather", "index", "index_select",
    "index_put", "scatter", "scatter_add", "tril", "triu", "arange", "linspace", "im2col", "unfold",
    "constant_pad_nd", "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest2d", "lstm", "gru", "rnn_tanh", "rnn_relu",
    "embedding", "nonzero", "masked_select", "_fft_c2c", "_fft_r2c",
})  # fmt: skip
PARTING = frozenset({"slice", "select", "unbind", "split", "split_with_sizes"})
COMBINING = frozenset({"add", "sub", "mul", "div", "where", "masked_fill"})


@dataclass(eq=False)
class Call:
    """One call of a module that is or contains attention.

    Attributes:
        tokens: N of a first argument (B, N, D); 0 where it has another shape.
        places: the same, or H * W of a first argument (B, C, H, W).
        order: why the module may tell tokens apart by their place; empty if nothing was seen.
        depth: number of modules around it.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    depth: int
    entered: int
    output: Any = None
    tokens: int = 0
    places: int = 0
    features: int = 0
    order: str = ""
    attentions: list[Attention] = field(default_factory=list)
    received: set[int] = field(default_factory=set)
    overwritten: set[int] = field(default_factory=set)


@dataclass(kw_only=True)
class Dataflow:
    """What one forward pass in eval mode showed. Modules are given by name.

    Attributes:
        attentions: every product of queries and keys that reached a softmax.
        calls: calls of modules in which one of those happened, innermost first.
        single_softmax: (module, shape) of softmax over an axis of size 1.
        redundant_relu: modules that apply a ReLU to what a ReLU made.
        overwritten_skips: modules that overwrite their input in place and add it to their result afterwards.
        made_parameters: (module, class of what it made) for parameters that are made anew in every forward pass.
        read_buffers: float buffers that some operation reads.
        read_tensors: name -> float tensor that is an attribute, neither parameter nor buffer, and read.
        sides: (operation, side before, side after) of the convolutions, patch embeddings and poolings of feature maps.
        collapsing: pairs of layers with nothing nonlinear between them, which one layer could replace.
        sparse_tables: tables of relative positions with rows that no place can reach.
    """

    attentions: list[Attention] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    single_softmax: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    redundant_relu: list[str] = field(default_factory=list)
    overwritten_skips: list[str] = field(default_factory=list)
    made_parameters: list[tuple[str, str]] = field(default_factory=list)
    read_buffers: set[str] = field(default_factory=set)
    read_tensors: dict[str, Tensor] = field(default_factory=dict)
    sides: list[tuple[str, int, int]] = field(default_factory=list)
    collapsing: list[tuple[Layer, Layer]] = field(default_factory=list)
    sparse_tables: list[SparseTable] = field(default_factory=list)


@dataclass(eq=False)
class Memory:
    """What is known of a storage. `storage` keeps it alive, so that its address is not used for another one."""

    storage: Any
    made_at: int
    given: bool = False
    from_input: bool = False
    learned: bool = False
    no_negative: bool = False


def follow_forward(model: nn.Module, x: Tensor, run: Callable[[Tensor], Any] | None = None) -> Dataflow:
    """Run `model` in eval mode on `x` (B, ...) and follow every tensor. Leaves no hook behind.

    Args:
        run: makes the pass over `x` and returns what the model does, if something else is to be learned from it too.

    Raises:
        RuntimeError: the pass could not be followed. What the model's own code raises comes out unchanged.
    """
    watcher = Watcher(model, x)
    model.eval()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), watcher.hooks(), watcher:
            output = run(x) if run else model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if watcher.problem is not None:
        raise RuntimeError(f"{type(watcher.problem).__name__}: {watcher.problem}")
    watcher.linear.returned(list(_tensors(output.values() if isinstance(output, Mapping) else (output,))))
    return watcher.result()


class Watcher(OperationMode):
    """Sees every primitive operation of a forward pass."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model = model
        self.flow = Dataflow()
        self.memories: dict[int, Memory] = {}
        self.read: set[int] = set()
        self.time = 0
        self.stack: list[Call] = []
        self.problem: Exception | None = None
        self.attention = AttentionTracker(self, batch=len(x))
        self.linear = LinearTracker(self)
        self.parameters = {id(p) for p in model.parameters()}
        for tensor in [*model.parameters(), *model.buffers()]:
            self._remember(tensor, given=True, learned=isinstance(tensor, nn.Parameter))
        self._remember(x, given=True, from_input=True)

    # -- modules -----------------------------------------------------------------------------------------------

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Know which module runs, and notice parameters that are registered meanwhile."""
        with ExitStack() as handles:
            for name, module in self.model.named_modules():
                enter, leave = self._enter(name), self._leave()
                with suppress(RuntimeError):  # a scripted module takes no hooks
                    before = module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
                    handles.callback(before.remove)
                    after = module.register_forward_hook(leave, always_call=True)
                    handles.callback(after.remove)
            registration = register_module_parameter_registration_hook(self._registered)
            handles.callback(registration.remove)
            yield

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call(name, module, args, kwargs, len(self.stack), self.time)
            tensors = [a for a in [*args, *kwargs.values()] if isinstance(a, Tensor)]
            call.received = {address for t in tensors if (address := storage_of(t)) is not None}
            if tensors and tensors[0].dim() == 3 and tensors[0].is_floating_point():
                _, call.tokens, call.features = tensors[0].shape
                call.places = call.tokens
            elif tensors and tensors[0].dim() == 4:
                call.places = tensors[0].shape[2:].numel()
            self.stack.append(call)

        return hook

    def _leave(self) -> Any:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            while self.stack:  # deeper ones are still there if one of them raised
                call = self.stack.pop()
                if call.module is module:
                    call.output = output
                    if call.attentions:
                        self.flow.calls.append(call)
                    return

        return hook

    def _registered(self, module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and self.stack:
            self.flow.made_parameters.append((self.place, type(module).__name__))

    @property
    def place(self) -> str:
        """Name of the module that runs."""
        return self.stack[-1].name if self.stack else ""

    # -- memory ------------------------------------------------------------------------------------------------

    def memory(self, tensor: Tensor) -> Memory | None:
        """What is known of the tensor's memory; None for a tensor without any."""
        address = storage_of(tensor)
        return None if address is None else self.memories.get(address)

    def from_input(self, tensor: Tensor) -> bool:
        """Whether the tensor was computed from the model's input."""
        memory = self.memory(tensor)
        return memory is not None and memory.from_input

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on neither input nor parameters."""
        memory = self.memory(tensor)
        return memory is None or not (memory.from_input or memory.learned)

    def is_computed(self, tensor: Tensor) -> bool:
        """Whether the tensor was made in this pass, and is no parameter, buffer or input as it stands."""
        memory = self.memory(tensor)
        return memory is not None and not memory.given

    def _remember(self, tensor: Tensor, **facts: bool) -> Memory | None:
        address = storage_of(tensor)
        if address is None:
            return None
        known = self.memories.get(address)
        if known is None:
            known = self.memories[address] = Memory(tensor.untyped_storage(), self.time)
        for name, value in facts.items():
            setattr(known, name, getattr(known, name) or value)
        return known

    # -- operations --------------------------------------------------------------------------------------------

    def carry_out(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Carry the operation out, and note it."""
        result = func(*args, **kwargs)
        if self.problem is None:
            try:
                self._note(func, args, kwargs, result)
            except Exception as error:  # a mistake of ours must not come out of the user's forward
                self.problem = error
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        self.time += 1
        name = func._schema.name.rpartition("::")[2]
        in_place = name.endswith("_") and not name.endswith("__")
        operation = Operation(
            name=name.rstrip("_") if in_place else name,
            args=args,
            kwargs=kwargs,
            inputs=list(_tensors((*args, *kwargs.values()))),
            outputs=list(_tensors((result,))),
            in_place=in_place,
        )
        for tensor in operation.inputs:
            self._note_input(tensor)
        self._note_activation(operation)
        self._note_skip(operation)
        self._note_order(operation)
        self._note_side(operation)
        from_input = any(map(self.from_input, operation.inputs))
        learned = any(memory.learned for t in operation.inputs if (memory := self.memory(t)))
        for tensor in operation.outputs:
            self._remember(tensor, from_input=from_input, learned=learned)
        self._note_sign(operation)
        self.attention.follow(operation)
        self.linear.follow(operation)

    def _note_input(self, tensor: Tensor) -> None:
        memory = self.memory(tensor) or self._remember(tensor, given=True)
        if memory is not None:
            self.read.add(memory.storage._cdata)
            made_here = isinstance(tensor, nn.Parameter) and memory.made_at > 0 and not memory.given
            if made_here and id(tensor) not in self.parameters:
                self.flow.made_parameters.append((self.place, "Parameter"))

    def _note_activation(self, operation: Operation) -> None:
        if operation.name not in ACTIVATIONS or not operation.inputs:
            return
        memory = self.memory(operation.inputs[0])
        if memory is None:
            return
        if operation.name == "relu" and memory.from_input and memory.no_negative:
            self.flow.redundant_relu.append(self.place)
        changes = not (memory.no_negative and operation.name in ("relu", "leaky_relu"))
        if operation.in_place and changes:
            for call in self.stack:
                if memory.storage._cdata in call.received:
                    call.overwritten.add(memory.storage._cdata)

    def _note_skip(self, operation: Operation) -> None:
        """An addition of what the module received and overwrote, to what it made since."""
        if operation.name != "add" or len(operation.inputs) < 2:
            return
        addresses = [storage_of(t) for t in operation.inputs[:2]]
        for call in reversed(self.stack):
            for skip, branch in (addresses, addresses[::-1]):
                made = self.memories.get(branch) if branch is not None else None
                if skip in call.overwritten and made is not None and made.made_at > call.entered and made.from_input:
                    self.flow.overwritten_skips.append(call.name)
                    return

    def _note_sign(self, operation: Operation) -> None:
        makes = operation.name == "relu" or (operation.name in ("hardtanh", "clamp_min", "clamp") and _floor(operation))
        keeps = operation.name in KEEPS_SIGN and all(self._is_non_negative(t) for t in operation.inputs)
        keeps = keeps and (operation.name != "add" or len(operation.inputs) == 2)
        for tensor in operation.outputs:
            memory = self.memory(tensor)
            if memory is None:
                continue
            shares = any(self.memory(t) is memory for t in operation.inputs)
            if makes or keeps or not shares:
                memory.no_negative = makes or (keeps and bool(operation.inputs))
            elif operation.in_place:
                memory.no_negative = False

    def _is_non_negative(self, tensor: Tensor) -> bool:
        memory = self.memory(tensor)
        return memory is not None and memory.no_negative

    def _note_side(self, operation: Operation) -> None:
        if operation.name != "convolution" and operation.name not in POOLINGS:
            return
        before, after = operation.inputs[0], operation.outputs[0]
        if before.dim() == 4 and after.dim() == 4:
            kind = "pooling"
            if operation.name == "convolution":
                # A kernel as wide as its stride cuts patches.
                stride = before.shape[-1] / max(1, after.shape[-1])
                kind = "convolution" if operation.inputs[1].shape[-1] > stride else "patches"
            self.flow.sides.append((kind, min(before.shape[2:]), min(after.shape[2:])))

    # -- places of a sequence ------------------------------------------------------------------------------------

    def _note_order(self, operation: Operation) -> None:
        for call in self.stack:
            if call.tokens > 1 and not call.order and self._tells_places_apart(operation, call):
                call.order = operation.name

    def _tells_places_apart(self, operation: Operation, call: Call) -> bool:
        name, tokens = operation.name, call.tokens
        if name in ORDER_OPERATIONS:
            return True
        if name == "convolution":
            return any(side > 1 for side in operation.inputs[1].shape[2:])
        if not operation.inputs or not operation.outputs:
            return False
        first, after = operation.inputs[0], operation.outputs[0]
        if name in PARTING:
            return tokens in first.shape and first.shape.count(tokens) != after.shape.count(tokens)
        if name in ("view", "_unsafe_view", "reshape"):
            return _splits_axis(first.shape, after.shape, tokens)
        if name in MATMULS and tokens != call.features:  # a layer along the sequence has a weight for each place
            return any(tokens in t.shape for t in operation.inputs if t.dim() > 1 and not self.from_input(t))
        if name in COMBINING:
            return any(_is_table(t, call) for t in operation.inputs if not self.from_input(t))
        return False

    # -- the end -------------------------------------------------------------------------------------------------

    def result(self) -> Dataflow:
        """All that was seen."""
        flow = self.flow
        flow.attentions = self.attention.found
        flow.single_softmax = self.attention.single_softmax
        flow.collapsing, flow.sparse_tables = self.linear.collapsing(), self.linear.sparse_tables()
        flow.calls.sort(key=lambda call: -call.depth)
        flow.read_buffers = {
            n for n, b in self.model.named_buffers() if _is_float_table(b) and storage_of(b) in self.read
        }
        flow.read_tensors = {n: t for n, t in plain_tensors(self.model) if storage_of(t) in self.read}
        return flow


def is_normalised(module: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to a weight that a hook computes anew in each pass: spectral and weight norm."""
    parameters = module._parameters
    base = name.removesuffix("_u").removesuffix("_v")
    return f"{base}_orig" in parameters or f"{base}_g" in parameters


def plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of the larger float tensors that are plain attributes of modules, also in lists and dicts."""
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_buffers", "_modules") and not is_normalised(module, key):
                yield from _tensors_within(f"{prefix}.{key}".lstrip("."), value, depth=3)


def _tensors_within(path: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if _is_float_table(value) and not isinstance(value, nn.Parameter):
            yield path, value
    elif depth and isinstance(value, list | tuple | dict):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            yield from _tensors_within(f"{path}[{key!r}]", item, depth - 1)


def looks_random(tensor: Tensor) -> bool:
    """Whether numbers look drawn: all different, spread like a normal or uniform variable, neighbours unrelated."""
    values = tensor.detach().double().squeeze()
    if values.numel() < SMALLEST_SAMPLE or not values.isfinite().all() or values.std() == 0:
        return False
    if values.unique().numel() < 0.99 * values.numel():
        return False
    z = (values - values.mean()) / values.std()
    if not KURTOSES[0] < z.pow(4).mean().item() < KURTOSES[1] or abs(z.pow(3).mean().item()) > LARGEST_SKEWNESS:
        return False
    bound = 4 / values.numel() ** 0.5
    neighbours = ((z.narrow(a, 1, n - 1) * z.narrow(a, 0, n - 1)).mean().item() for a, n in enumerate(z.shape) if n > 1)
    return all(abs(correlation) < bound for correlation in neighbours)


def coarse_stem(flow: Dataflow, side: int) -> tuple[int, int] | None:
    """(side after the stem, smallest side of a feature map) if a first convolution with a stride, alone or with a
    pooling right behind it, leaves at most a quarter of each side; else None."""
    for (kind, before, after), (next_kind, _, pooled) in list(pairwise(flow.sides))[:1]:
        left = pooled if next_kind == "pooling" and after > pooled else after
        if kind == "convolution" and before == side and before > after and 4 * left <= side:
            return left, min(after for _, _, after in flow.sides)
    return None


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _is_float_table(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() >= SMALLEST_TABLE


def _floor(operation: Operation) -> bool:
    """Whether a clamp ends at 0 from below."""
    lowest = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("min")
    return isinstance(lowest, int | float) and lowest >= 0


def _is_table(tensor: Tensor, call: Call) -> bool:
    """Whether a constant or parameter has an axis for the tokens (or for all but the class token)."""
    sizes = tensor.shape[:-1] if tensor.dim() and tensor.shape[-1] == call.features else tensor.shape
    return any(size > 1 and abs(size - call.tokens) <= 1 for size in sizes)


def _splits_axis(old: torch.Size, new: torch.Size, size: int) -> bool:
    """Whether a view makes several axes of an axis with `size` elements, as windows and maps of tokens do."""
    for axis, length in enumerate(old):
        if length != size:
            continue
        before = old[:axis].numel()
        bounds = [new[:end].numel() for end in range(len(new) + 1)]
        if before not in bounds or before * size not in bounds:
            continue
        inner = new[bounds.index(before) : bounds.index(before * size)]
        if sum(n > 1 for n in inner) > 1:
            return True
    return False
