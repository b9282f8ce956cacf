"""Where to compute."""

import torch

from engine.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device called "cpu" or "cuda"; "auto" is cuda where there is one.

    Raises:
        UserError: cuda was asked for, but there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch finds no CUDA device here; use --set device=cpu or device=auto")
    return torch.device(name)
