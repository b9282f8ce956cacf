"""Check that training still does what it did: its first losses must be those that were stored.

    python golden.py --update               store the first 10 losses in golden.json; do so when a change is meant
    python golden.py                        train 10 updates anew, and compare
    python golden.py --set dataset=digits   with settings changed, as for train.py

On the same machine, versions and threads, losses are equal to the last bit. Elsewhere numbers are added in another
order, and they may differ by a hundred-thousandth, on a GPU by a thousandth. Nothing in checkpoints/ and runs/ is
touched. Exit code 0: the same, 1: another loss, 2: wrong use.
"""

import engine.startup  # noqa: F401  (first: it concerns the imports below)

# isort: split
import argparse
import json
import math
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import FREE_KEYS
from engine.config import Config, add_config_arguments, load_config
from engine.device import choose_compute
from engine.errors import EXIT_DONE, EXIT_FAILED, TrainingFailedError, UserError, run_script
from engine.run import write_json
from train import Trainer

STORED = Path("golden.json")
UPDATES = 10
# Relative, of sums in another order; on a GPU products have 10 bits after the point by default.
ROUNDING, GPU_ROUNDING = 1e-5, 1e-3


def first_losses(config: Config) -> tuple[list[float], str]:
    """The loss of each of the first updates, and the device on which they were made.

    Raises:
        TrainingFailedError: a loss or a gradient is not finite.
    """
    compute = choose_compute(config)
    trainer = Trainer(config, compute)
    config.check_all_read()
    trainer.model.train()
    trainer.train_loader.set_epoch(0)
    losses: list[float] = []
    for window in trainer.windows.of(trainer.train_loader, first_batch=0):
        trainer.step(window)
        for result in trainer.step.read():
            if result.failed_at is not None:
                raise TrainingFailedError(f"update {len(losses) + 1} is not finite; a lower learning_rate may help")
            images = sum(count for _, _, count in result.batches)
            losses.append(sum(loss * count for loss, _, count in result.batches) / images)
        if len(losses) >= UPDATES:
            break
    return losses, str(compute)


def surroundings(device: str) -> dict[str, Any]:
    """What has to be the same for losses to be equal to the last bit."""
    return {
        "torch": torch.__version__,
        "device": device,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def compare(stored: dict[str, Any], losses: list[float], here: dict[str, Any]) -> int:
    """Print how losses compare with the stored ones; the exit code."""
    exact = stored["surroundings"] == here
    pairs = list(zip(stored["losses"], losses, strict=False))
    on_cpu = all(place["device"].startswith("cpu") for place in (stored["surroundings"], here))
    tolerance = 0.0 if exact else ROUNDING if on_cpu else GPU_ROUNDING
    wrong = [n for n, (was, now) in enumerate(pairs) if not math.isclose(was, now, rel_tol=tolerance)]
    if len(losses) == len(stored["losses"]) and not wrong:
        how = "equal to the last bit" if exact else f"equal within {tolerance:g}; they were stored elsewhere"
        print(f"{len(losses)} losses are those of {STORED}, {how}")
        return EXIT_DONE
    for number, (was, now) in enumerate(pairs):
        print(f"update {number + 1:2}  stored {was:.8f}  now {now:.8f}" + ("  differs" if number in wrong else ""))
    changed = [f"{name} was {stored['surroundings'].get(name)}, is {value}" for name, value in here.items()]
    reason = "" if exact else f" (stored elsewhere: {'; '.join(changed)})"
    print(
        f"error: training does not do what it did{reason}; if that is meant, python golden.py --update", file=sys.stderr
    )
    return EXIT_FAILED


def read_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """What `--update` wrote.

    Raises:
        UserError: nothing did, or for other settings.
    """
    if not STORED.exists():
        raise UserError(f"{STORED} does not exist; store the first losses with python golden.py --update")
    try:
        stored: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
        was, _, _ = stored["settings"], stored["losses"][0], stored["surroundings"]["device"]
    except (ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"{STORED} is damaged; write it anew with python golden.py --update") from None
    changed = [key for key in {**was, **settings} if was.get(key) != settings.get(key)]
    if changed:
        differences = ", ".join(f"{key} was {was.get(key)!r} and is {settings.get(key)!r}" for key in changed)
        raise UserError(f"{STORED} is of other settings ({differences}); undo that, or run with --update")
    return stored


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--update", action="store_true", help=f"write {STORED}")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    losses, device = first_losses(config)
    here = surroundings(device)
    settings = {key: value for key, value in config.used().items() if key == "epochs" or key not in FREE_KEYS}
    if not arguments.update:
        return compare(read_stored(settings), losses, here)
    write_json({"losses": losses, "settings": settings, "surroundings": here}, STORED)
    print(f"stored {len(losses)} losses in {STORED}: {losses[0]:.4f} to {losses[-1]:.4f}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_script(main))
