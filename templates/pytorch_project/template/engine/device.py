"""Where and how to compute."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from engine.config import Config
from engine.errors import UserError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """The device, and what makes it fast.

    Args:
        device: cpu or cuda.
        precision: of products and convolutions: fp32, tf32 (19 bits, CUDA), bf16 or fp16 (autocast). Weights are fp32.
        reason: of the choice, for people.
        reads_at_once: whether the result of every update is read before the next one.
    """

    device: torch.device
    precision: str = "fp32"
    reason: str = ""
    reads_at_once: bool = True

    def autocast(self) -> AbstractContextManager:
        """What the forward pass of training runs in."""
        if self.precision not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST[self.precision])

    def __str__(self) -> str:
        """As it is announced."""
        return f"{self.device} ({self.reason})" if self.reason else str(self.device)


def choose_compute(config: Config) -> Compute:
    """Device and precision of a configuration.

    Raises:
        UserError: the device is not there, or cannot do that.
    """
    device = pick_device(config.device)
    precision = config.precision
    if config.shard and (precision == "fp16" or config.ema_decay):
        raise UserError("shard is true, which goes with neither precision fp16 nor ema_decay; use bf16, or no average")
    if device.type == "cpu":
        if precision in ("tf32", "fp16"):
            raise UserError(f"precision {precision} is for CUDA; use auto, fp32 or bf16 on the CPU")
        precision = "fp32" if precision == "auto" else precision
        found = "no GPU found, " if config.device == "auto" else ""
        asleep = " that sleep while they wait" if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE" else ""
        threads = f"{torch.get_num_threads()} threads{asleep}"
        return Compute(device, precision, f"{found}{precision}, {threads}, channels_last")
    if precision == "auto":
        # On small images half precision gains nothing: starting the kernels takes longer than they run.
        precision = "tf32" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    reason = f"{torch.cuda.get_device_name(device)}, {precision}, channels_last, fused optimizer"
    return Compute(device, precision, reason, reads_at_once=config.shard)


def compile_model(model: nn.Module) -> None:
    """Compile a model in place, so that the names of its weights stay.

    Raises:
        UserError: there is no compiler for it.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl")):
        raise UserError("compile is true, but there is no C++ compiler here; install g++ or use compile=false")
    model.compile()


def pick_device(name: str) -> torch.device:
    """The device called "cpu" or "cuda"; "auto" is cuda where there is one.

    Call it before anything is computed. A CPU takes many times as long over numbers below 1e-38 as over others, and
    that is where Adam with L2 drives the weights and moments of inactive units: after 13 epochs of the CNN on CIFAR-10
    a step took 2.2x the time (measured). So they count as 0 from here on, in this thread and in all that it starts.

    Raises:
        UserError: cuda was asked for, but there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch finds no CUDA device here; use --set device=cpu or device=auto")
    if name == "cpu":
        torch.set_flush_denormal(True)
    return torch.device(name)
