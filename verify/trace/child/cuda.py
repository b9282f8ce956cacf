"""Code that asks for CUDA on a machine without it: told with its place, and, in a second attempt, run on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FACTORIES = (
    "zeros", "ones", "empty", "full", "rand", "randn", "randint", "randperm", "arange", "linspace", "eye", "tensor",
    "as_tensor", "zeros_like", "ones_like", "rand_like", "randn_like", "full_like", "empty_like", "normal",
)  # fmt: skip
NOTHING = ("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats", "ipc_collect", "init")
ZERO = ("current_device", "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")


def watch(session: Any) -> None:
    """Where CUDA is asked for without a look whether it is there; the call itself is left to fail."""
    if torch.cuda.is_available():
        return
    for owner in (Tensor, nn.Module):
        _watch(owner, "cuda", session, lambda args, options: True)
        _watch(owner, "to", session, _wants_cuda)


def _wants_cuda(args: tuple, options: dict) -> bool:
    return any(is_cuda(value) for value in (*args[1:2], options.get("device")))


def _watch(owner: Any, name: str, session: Any, asks: Callable[[tuple, dict], bool]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(*args: Any, **options: Any) -> Any:
        if asks(args, options):
            note(session, f".{name}()")
        return original(*args, **options)

    setattr(owner, name, method)


def note(session: Any, what: str) -> None:
    """Write down a place that asks for CUDA, once."""
    place = session.places.here()
    told = session.__dict__.setdefault("cuda_places", set())
    if session.is_recording and place not in told and len(told) < 20:
        told.add(place)
        session.emit("cuda_asked", what=what, loc=place)


def is_cuda(device: Any) -> bool:
    """Whether this names a CUDA device."""
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def pretend(session: Any) -> None:
    """Make calls that ask for CUDA stay on the CPU."""

    def stay(original: Callable[..., Any], first: int) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **options: Any) -> Any:
            if is_cuda(options.get("device")):
                note(session, f"device={options['device']!r}")
                options["device"] = "cpu"
            if len(args) > first and first >= 0 and is_cuda(args[first]):
                note(session, f".to({args[first]!r})")
                args = (*args[:first], "cpu", *args[first + 1 :])
            return original(*args, **options)

        return call

    def cuda(value: Any, *args: Any, **options: Any) -> Any:
        note(session, ".cuda()")
        return value

    for owner in (Tensor, nn.Module):
        owner.cuda = cuda  # type: ignore[method-assign, assignment, attr-defined]
        owner.to = stay(owner.to, 1)  # type: ignore[method-assign, assignment, attr-defined]
    for name in FACTORIES:
        setattr(torch, name, stay(getattr(torch, name), -1))
    for name in NOTHING:
        setattr(torch.cuda, name, lambda *args, **options: None)
    for name in ZERO:
        setattr(torch.cuda, name, lambda *args, **options: 0)
    torch.cuda.get_device_name = lambda *args, **options: "pretended"
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda *args, **options: (0, 0)
