"""Which operations a pass carries out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from verify.modes import OperationMode

# What only looks at a tensor in another way, and what multiplies by it as by a matrix.
VIEWS = ("view", "t.", "transpose", "permute", "expand", "slice", "unsqueeze", "squeeze", "detach", "alias", "_to_copy")
PRODUCTS = ("mm.", "bmm.", "addmm.", "baddbmm.", "matmul", "linear", "convolution", "mv.", "dot.")


class Operations(OperationMode):
    """Collects the names of the operations that are carried out inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def carry_out(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Note the name, and carry it out."""
        self.names.add(str(func))
        return func(*args, **kwargs)


class Consumers(OperationMode):
    """Collects the names of the operations that use the memory of a tensor, views of it left out."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.memory = tensor.untyped_storage().data_ptr()
        self.names: set[str] = set()

    def carry_out(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Note the name if the tensor is among the arguments, and carry it out."""
        given = [one for arg in args for one in (arg if isinstance(arg, (list, tuple)) else [arg])]
        tensors = [one for one in given if isinstance(one, Tensor) and one.device.type != "meta"]
        name = str(func).removeprefix("aten.")
        if any(one.untyped_storage().data_ptr() == self.memory for one in tensors) and not name.startswith(VIEWS):
            self.names.add(name)
        return func(*args, **kwargs)

    @property
    def only_multiply(self) -> bool:
        """Whether it is used as a matrix and as nothing else."""
        return bool(self.names) and all(name.startswith(PRODUCTS) for name in self.names)
