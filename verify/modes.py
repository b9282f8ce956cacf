"""A dispatch mode that follows the operations of a pass and does not cost the import of torch's compiler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class OperationMode(TorchDispatchMode):
    """Gives every primitive operation inside of it to `carry_out`.

    torch keeps its compiler out of the code of such modes, and imports the compiler for it, which takes nearly as long
    as to import torch. Here that is left until something else, a compiled model say, has imported it.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry the operation out, by the subclass."""
        carry_out = self._not_compiled if "torch._dynamo" in sys.modules else self.carry_out
        return carry_out(func, args, kwargs or {})

    @cached_property
    def _not_compiled(self) -> Callable[..., Any]:
        return torch.compiler.disable(self.carry_out)

    def carry_out(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of the operation `func`."""
        raise NotImplementedError
