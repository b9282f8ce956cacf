"""Validation accuracy against CPU time, from outside of the training processes: they run as they are."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil

from training.contestants import SCAFFOLD, SEED, Arena, BenchError, Launch

RUNNERS = ((SCAFFOLD, "cnn"), (SCAFFOLD, "resnet"), (SEED, "cnn"))
POLL_SECONDS = 0.25
GRACE_SECONDS = 30
# Epochs differ by a few per cent. A schedule that ends just after the budget would never be seen at its end.
MARGIN = 0.97


def curves(arena: Arena, budget: float) -> Iterator[dict[str, Any]]:
    """A point an epoch of each runner: its CPU minutes and its validation accuracy.

    The learning rate schedule of each ends where the budget does, by the cost of an epoch in a trial run of two.

    Args:
        arena: where to run.
        budget: user and system time of a run and its workers, in minutes.

    Raises:
        BenchError: a run failed, or the budget is less than an epoch.
    """
    for side, model in RUNNERS:
        epochs = _affordable_epochs(arena, side, model, budget)
        print(f"{side}, {model}: {epochs} epochs in {budget:g} CPU minutes", flush=True)
        for point in follow(arena.launch(side, model, epochs), budget):
            print(f"  {point['cpu_minutes']:7.2f} min  {point['val_accuracy']:.2%}", flush=True)
            yield {"kind": "accuracy", "side": side, "model": model, "epochs": epochs, "budget": budget, **point}


def _affordable_epochs(arena: Arena, side: str, model: str, budget: float) -> int:
    first, second = (point["cpu_minutes"] for point in follow(arena.launch(side, model, epochs=2)))
    epoch = second - first
    start = first - epoch
    epochs = int((MARGIN * budget - start) / epoch)
    if epochs < 1:
        raise BenchError(
            f"--accuracy {budget:g}: an epoch of {side}, {model} takes {first:.1f} CPU minutes; allow more"
        )
    return epochs


def follow(launch: Launch, budget: float = float("inf")) -> Iterator[dict[str, Any]]:
    """Run until the end or until `budget` CPU minutes are used up; a point when an epoch ends.

    Raises:
        BenchError: the process failed.
    """
    seen, minutes = 0, 0.0
    with launch.errors.open("w") as errors:
        process = psutil.Popen(
            launch.command, cwd=launch.folder, env=launch.environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            running = True
            while running and minutes < budget:
                time.sleep(POLL_SECONDS)
                minutes = max(minutes, cpu_seconds(process) / 60)
                running = process.poll() is None  # asked before the log is read, which is then complete
                for entry in launch.epochs()[seen:]:
                    seen += 1
                    yield {"epoch": entry["epoch"], "val_accuracy": entry["val_accuracy"], "cpu_minutes": minutes}
        finally:
            _end(process)
    if minutes < budget and process.returncode:
        raise BenchError(f"{launch.title} ended with code {process.returncode}: {launch.last_words()}")


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and of all that it started, also of those that have ended."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:4])  # own user and system time, and those of children it waited for
    return total


def _end(process: psutil.Popen) -> None:
    """Ask the process to stop, then end it and its workers."""
    if process.poll() is not None:
        return
    workers = process.children(recursive=True)
    process.terminate()
    with suppress(psutil.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    for one in (process, *workers):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
