"""Shapes without computing: build and run a model on the meta device, where tensors have a shape and no data.

torch writes the meta versions of most operations in Python, and each of them asks two questions that have nothing to
do with a tensor of known size: "is this size a symbol?" (which imports sympy) and "is the compiler switched off
here?" (which imports torch.compile). Together they cost a second of CPU time, as much as importing torch itself.
`plain_sizes` answers both in their stead: no size is a symbol, and nothing is being compiled. Where that does not do,
the caller runs the model on real tensors; so a shape found here is right, and a shape not found here costs time only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

COMPILER = "torch._dynamo"
SYMBOLS = "torch.fx.experimental.symbolic_shapes"
ALGEBRA = "sympy"


def _stand_in_for_compiler() -> ModuleType:
    module = ModuleType(COMPILER)
    module.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    return module


def _stand_in_for_symbols() -> ModuleType:
    module = ModuleType(SYMBOLS)
    for name in ("guard_or_false", "guard_or_true", "guard_bool", "guard_size_oblivious", "expect_true"):
        setattr(module, name, bool)
    answers: dict[str, Callable] = {
        "statically_known_true": bool,
        "statically_known_false": lambda condition: not condition,
        "sym_and": lambda *conditions: all(conditions),
        "sym_or": lambda *conditions: any(conditions),
        "sym_eq": lambda a, b: a == b,
        "guard_int": int,
        "guard_float": float,
        "guarding_hint_or_throw": lambda size: size,
        "has_guarding_hint": lambda size: True,
        "is_nested_int": lambda size: False,
        "has_free_symbols": lambda *sizes: False,
        "has_free_unbacked_symbols": lambda *sizes: False,
        "free_unbacked_symbols": lambda *sizes: set(),
    }
    hints = ("_advise_is_size", "_advise_is_bounded", "_constrain_range_for_size", "constrain_range")
    answers |= {hint: lambda *_, **__: None for hint in hints}
    for name, answer in answers.items():
        setattr(module, name, answer)
    return module


def _stand_in_for_algebra() -> ModuleType:
    module = ModuleType(ALGEBRA)
    module.Basic = type("Basic", (), {})  # type: ignore[attr-defined]
    return module


def sizes_of(x: Tensor) -> AbstractContextManager[None]:
    """`plain_sizes` for a pass over a tensor without numbers, nothing for one with."""
    return plain_sizes() if x.is_meta else nullcontext()


@contextmanager
def plain_sizes() -> Iterator[None]:
    """While active, torch's meta operations take every size for a plain number.

    Once the real modules have been imported, nothing is left to save, and this does nothing.
    """
    if any(name in sys.modules for name in (COMPILER, SYMBOLS, ALGEBRA)):
        yield
        return
    before = set(sys.modules)
    stand_ins = {
        COMPILER: _stand_in_for_compiler(),
        SYMBOLS: _stand_in_for_symbols(),
        ALGEBRA: _stand_in_for_algebra(),
    }
    sys.modules.update(stand_ins)
    torch._dynamo = stand_ins[COMPILER]
    try:
        yield
    finally:
        del torch._dynamo
        # What was imported meanwhile may hold on to a stand-in: it is imported anew when it is needed.
        for name in set(sys.modules) - before:
            if name in stand_ins or name.startswith("torch."):
                del sys.modules[name]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    fits = x.dim() > 1 and weight.dim() == 2 and x.shape[-1] == weight.shape[1] and x.dtype == weight.dtype
    return x.new_empty((*x.shape[:-1], weight.shape[0])) if fits and _same_size(bias, weight.shape[:1]) else None


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 0
) -> Tensor | None:
    size = tuple(shape)
    fits = size == tuple(x.shape[-len(size) :]) and _same_size(weight, size) and _same_size(bias, size)
    return torch.empty_like(x) if fits else None


def _attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor | None:
    plain = not any(option for name, option in options.items() if name != "dropout_p")
    fits = query.dim() == key.dim() == value.dim() == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]
    fits = fits and query.shape[-1] == key.shape[-1] and key.shape[2] == value.shape[2]
    return query.new_empty((*query.shape[:-1], value.shape[-1])) if plain and fits else None


def _add(a: Any, b: Any) -> Tensor | None:
    same = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
    return torch.empty_like(a) if same and a.is_contiguous() else None


def _same_size(tensor: Tensor | None, size: tuple[int, ...]) -> bool:
    return tensor is None or tuple(tensor.shape) == tuple(size)


class _Shortcuts(TorchFunctionMode):
    """Answers with an empty tensor what torch would work out in Python, 5 ms a layer norm.

    Only where the sizes plainly fit; everything else, and so every error, is left to torch.
    """

    ANSWERS: ClassVar[dict[Any, Callable[..., Tensor | None]]] = {
        F.linear: _linear,
        F.layer_norm: _layer_norm,
        F.scaled_dot_product_attention: _attention,
        F.gelu: lambda x, **_: torch.empty_like(x),
        Tensor.add: _add,
        torch.add: _add,
        Tensor.__add__: _add,
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer, or let torch do it."""
        answer = self.ANSWERS.get(func)
        first = args[0] if args else None
        if answer is not None and isinstance(first, Tensor) and first.is_meta:
            with suppress(TypeError):  # other arguments than the usual ones
                made = answer(*args, **(kwargs or {}))
                if made is not None:
                    return made
        return func(*args, **(kwargs or {}))


def meta_forward(model: nn.Module, size: tuple[int, ...]) -> Any:
    """Run a model that lives on the meta device on an input of shape `size`; what it returns has shapes and no data."""
    with torch.no_grad(), plain_sizes(), _Shortcuts():
        return model(torch.empty(size, device="meta"))
