"""How a model uses its parameters: which operation reads each first, in order of execution, and in what layout.

Names and registration say little about which parameter of one model is which of another: two libraries give the same
network different names, fuse queries, keys and values, or store a matrix the other way round. What an operation reads
says it: the operand of a product is (in, out) whoever stores it how. A use remembers the view of the parameter that
was read, so that a value can be written back through the same view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from verify.modes import OperationMode

PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
COPIES = frozenset({"clone", "_to_copy", "_unsafe_view", "contiguous"})
# Position of (scale, shift, mean, variance, epsilon) among the arguments; None: the operation has none.
NORMS: dict[str, tuple[int | None, ...]] = {
    "native_layer_norm": (2, 3, None, None, 4),
    "native_group_norm": (1, 2, None, None, 7),
    "native_batch_norm": (1, 2, 3, 4, 7),
    "cudnn_batch_norm": (1, 2, 3, 4, 7),
    "_native_batch_norm_legit_no_training": (1, 2, 3, 4, 6),
    "_fused_rms_norm": (2, None, None, None, 3),
}
NORM_ROLES = ("scale", "shift", "mean", "variance")


@dataclass(frozen=True)
class Use:
    """The first operation that reads a parameter, or a part of one, or a running statistic.

    Attributes:
        name: of the parameter.
        role: "matrix" (in, out), "conv" (out, in/groups, ...), "scale", "shift", "mean", "variance", or "table".
        size, stride, offset: the view of the parameter that was read, in elements; a matrix is (in, out) under it.
        operation: name of the operation that read it.
        order: how many uses came before.
    """

    name: str
    role: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    operation: str
    order: int = 0

    def view(self, state: Mapping[str, Tensor]) -> Tensor:
        """The part of the parameter in `state` that was read; writing into it writes into the parameter."""
        return state[self.name].detach().as_strided(self.size, self.stride, self.offset)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.size).numel()


@dataclass(eq=False)
class Layer:
    """A product or convolution with a parameter, and what belongs to it.

    Attributes:
        weight: (in, out), or (out, in/groups, ...) of a convolution.
        bias: (out,); None without one.
        norm: role -> use, of the normalisation that reads its result directly.
        source: what it reads: the memory, and how often that was overwritten before.
        patches: whether it is a convolution over patches that do not overlap, or over single places.
        groups: of a convolution.
        module: name of the innermost module around it.
    """

    weight: Use
    source: tuple[int, int]
    module: str
    bias: Use | None = None
    norm: dict[str, Use] = field(default_factory=dict)
    patches: bool = False
    groups: int = 1


@dataclass(frozen=True)
class Epsilon:
    """A normalisation: the name of its scale, the module, and the number added to the variance."""

    name: str
    module: str
    value: float


@dataclass(kw_only=True)
class Uses:
    """What one forward pass in eval mode reads.

    Attributes:
        layers: in order of execution.
        vectors: scales, shifts and statistics of normalisations that follow no layer directly, and other parameters
            with one axis, in order of execution.
        tables: every other parameter, in order of execution.
        epsilons: of the normalisations.
        idle: names of parameters that nothing reads.
    """

    layers: list[Layer] = field(default_factory=list)
    vectors: list[Use] = field(default_factory=list)
    tables: list[Use] = field(default_factory=list)
    epsilons: list[Epsilon] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    def all(self) -> Iterator[Use]:
        """Every use; those of layers first."""
        for layer in self.layers:
            yield layer.weight
            if layer.bias:
                yield layer.bias
            yield from layer.norm.values()
        yield from self.vectors
        yield from self.tables


def uses_of(model: nn.Module, x: Tensor) -> Uses:
    """Run `model` in eval mode on `x` (B, ...), both on the same device, which may be meta. Leaves no hook behind.

    What the model's own code raises comes out unchanged.
    """
    recorder = _Recorder(model)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), recorder.hooks(), recorder:
            model.eval()(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return recorder.result()


class _Recorder(OperationMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.uses = Uses()
        self.names = {_memory(t): name for name, t in model.named_buffers()}
        self.parameters = {_memory(p): name for name, p in model.named_parameters()}
        self.names |= self.parameters
        self.whole = {name: p.numel() for name, p in model.named_parameters()}
        self.read: dict[str, int] = {}
        self.seen: set[tuple[Any, ...]] = set()
        self.stack: list[str] = [""]
        self.kept: list[Tensor] = []  # so that no address is used twice
        self.roots: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.made: dict[int, Layer] = {}

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Know which module runs."""
        with ExitStack() as handles:
            for name, module in self.model.named_modules():
                with suppress(RuntimeError):  # a scripted module takes no hooks
                    enter = module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name))
                    handles.callback(enter.remove)
                    leave = module.register_forward_hook(lambda *_: self._leave(), always_call=True)
                    handles.callback(leave.remove)
            yield

    def _leave(self) -> None:
        self.stack.pop()

    def carry_out(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Carry the operation out, and note what it reads."""
        result = func(*args, **kwargs)
        name = func._schema.name.rpartition("::")[2]
        in_place = name.endswith("_") and not name.endswith("__")
        self._note(name.rstrip("_") if in_place else name, args, kwargs, result, func)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if in_place and first is not None:
            memory = _memory(first)
            self.written[memory] = self.written.get(memory, 0) + 1
        return result

    def _note(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, func: Any) -> None:
        results = [t for t in (result if isinstance(result, list | tuple) else [result]) if isinstance(t, Tensor)]
        self.kept += results
        if name in PRODUCTS:
            self._product(name, args, results)
        elif name == "convolution":
            self._convolution(args, results)
        elif name in NORMS:
            self._norm(name, args, results)
        elif func.is_view or (results and _is_view(args, results)):
            return
        elif name in COPIES and isinstance(args[0], Tensor) and results and not self._owner(args[0]):
            self.roots[_memory(results[0])] = self._root(args[0])
        else:
            self._other(name, [*_tensors(args), *_tensors(kwargs.values())], results)

    def _root(self, tensor: Tensor) -> int:
        memory = _memory(tensor)
        return self.roots.get(memory, memory)

    def _source(self, tensor: Tensor) -> tuple[int, int]:
        root = self._root(tensor)
        return root, self.written.get(root, 0)

    def _owner(self, tensor: Any) -> str:
        return self.names.get(_memory(tensor), "") if isinstance(tensor, Tensor) else ""

    def _use(self, tensor: Any, role: str, operation: str, *, transposed: bool = False) -> Use | None:
        """The use of a parameter that was not read in the same way before; None for anything else."""
        name = self._owner(tensor)
        if not name or self.read.get(name, 0) >= self.whole.get(name, 1 << 62):
            return None
        axes = [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1 and s > 0]
        if role == "conv" or (role == "matrix" and len(axes) < 2):
            axes = list(zip(tensor.shape, tensor.stride(), strict=True))[-2 if role == "matrix" else None :]
        axes = axes or [(1, 1)]
        axes = axes[::-1] if transposed else axes
        size, stride = tuple(n for n, _ in axes), tuple(s for _, s in axes)
        key = (name, size, stride, tensor.storage_offset())
        if key in self.seen:
            return None
        self.seen.add(key)
        self.read[name] = self.read.get(name, 0) + torch.Size(size).numel()
        return Use(name, role, size, stride, int(tensor.storage_offset()), operation, len(self.seen))

    def _product(self, name: str, args: tuple[Any, ...], results: list[Tensor]) -> None:
        left, right = (args[i] for i in PRODUCTS[name])
        for weight, other, transposed in ((right, left, False), (left, right, True)):
            use = self._use(weight, "matrix", name, transposed=transposed)
            if use is None:
                continue
            if len(use.size) != 2:
                self.uses.tables.append(use)
                continue
            layer = Layer(use, self._source(other), self.stack[-1])
            if name in ("addmm", "baddbmm"):
                layer.bias = self._use(args[0], "shift", name)
            self._made(layer, results)

    def _made(self, layer: Layer, results: list[Tensor]) -> None:
        self.uses.layers.append(layer)
        self.made[_memory(results[0])] = layer

    def _convolution(self, args: tuple[Any, ...], results: list[Tensor]) -> None:
        x, weight, bias, stride, _, _, _, _, groups = args[:9]
        use = self._use(weight, "conv", "convolution")
        if use is None:
            self._other("convolution", [weight], results)
            return
        kernel = list(weight.shape[2:])
        single = all(side == 1 for side in kernel)
        patches = groups == 1 and (kernel == list(stride)[: len(kernel)] or single)
        layer = Layer(use, self._source(x), self.stack[-1], patches=patches, groups=int(groups))
        layer.bias = self._use(bias, "shift", "convolution")
        self._made(layer, results)

    def _norm(self, name: str, args: tuple[Any, ...], results: list[Tensor]) -> None:
        *places, epsilon = NORMS[name]
        found = {}
        for role, place in zip(NORM_ROLES, places, strict=True):
            use = self._use(args[place], role, name) if place is not None and place < len(args) else None
            if use is not None:
                found[role] = use
        layer = self.made.get(self._root(args[0]))
        if "scale" in found and epsilon is not None and isinstance(args[epsilon], float):
            self.uses.epsilons.append(Epsilon(found["scale"].name, self.stack[-1], args[epsilon]))
        if layer is not None and not layer.norm and not self.written.get(_memory(args[0])):
            layer.norm = found
        else:
            self.uses.vectors += found.values()

    def _other(self, name: str, tensors: list[Tensor], results: list[Tensor]) -> None:
        for tensor in tensors:
            if _memory(tensor) not in self.parameters:
                continue
            use = self._use(tensor, "table", name)
            if use is None:
                continue
            layer = next((self.made[_memory(t)] for t in tensors if _memory(t) in self.made), None)
            if len(use.size) == 1 and name in ("add", "mul", "div", "sub"):
                role = "shift" if name in ("add", "sub") else "scale"
                use = replace(use, role=role)
                fits = layer is not None and layer.bias is None and not layer.norm and role == "shift"
                if layer is not None and fits and use.size == _outputs(layer):
                    layer.bias = use
                    self.made[_memory(results[0])] = layer
                    continue
                self.uses.vectors.append(use)
            else:
                self.uses.tables.append(use)

    def result(self) -> Uses:
        self.uses.idle = [name for name in self.whole if name not in self.read]
        return self.uses


def _outputs(layer: Layer) -> tuple[int]:
    return (layer.weight.size[0 if layer.weight.role == "conv" else -1],)


def _memory(tensor: Tensor) -> int:
    try:
        memory: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and opaque tensors have no storage
        return id(tensor)
    return memory


def _is_view(args: tuple[Any, ...], results: list[Tensor]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and len(results) == 1 and results[0] is args[0]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
