"""Random numbers: seeding, and their state as something that a checkpoint can hold."""

import random
from typing import Any

import numpy as np
import torch

from engine.parallel import World


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices), and let cuDNN choose reproducible kernels only."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def rng_state() -> dict[str, Any]:
    """The state of every global generator, as plain values and tensors (loadable with `weights_only=True`)."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": numpy_state["state"] | {"key": numpy_state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every global generator where `rng_state` found it; GPUs that are not here now are left out."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_rank(seed: int, world: World) -> None:
    """Let the processes draw different numbers from now on, for dropout; they have built the same model before."""
    if not world.is_first:
        mixed = np.random.SeedSequence([seed, world.rank]).generate_state(1, np.uint64)[0]
        seed_everything(int(mixed) % 2**63)


def rng_states(world: World) -> dict[str, Any]:
    """The state of this process's generators, which is the first, with those of the others under "others"."""
    first, *others = world.gather(rng_state())
    return first | {"others": others}


def set_rng_states(saved: dict[str, Any], world: World) -> None:
    """Put the generators where `rng_states` found them; more processes than there were then keep their seeds."""
    states = [saved, *saved.get("others", [])]
    if world.rank < len(states):
        set_rng_state(states[world.rank])
