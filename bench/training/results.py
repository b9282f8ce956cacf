"""What was measured, as JSON lines, a file a part, and what follows from it."""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from training.contestants import LIGHTNING, MODELS, PLAIN, SCAFFOLD

SPEED, OVERHEAD, LOADER, STARTUP, ACCURACY = "speed", "overhead", "loader", "startup", "accuracy"
PARTS = (SPEED, OVERHEAD, LOADER, STARTUP, ACCURACY)

# How many times as fast as the peer the scaffold is to be, end to end.
LEAST_RATIO = {("cnn", PLAIN): 1.5, ("resnet", PLAIN): 1.2, **{(model, LIGHTNING): 1.0 for model in MODELS}}
MOST_OVERHEAD = 0.03  # of the time that is spent training
TITLES = {"cnn": "CNN", "resnet": "ResNet-20", "vit": "ViT micro"}
LABELS = {SCAFFOLD: "the scaffold", PLAIN: "plain loop", LIGHTNING: "Lightning", "seed": "the seed's script"}

Line = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Median and range of some turns."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        values = sorted(values)
        return cls(median(values), values[0], values[-1])


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether it holds; None: it was not measured."""

    name: str
    wanted: str
    measured: str
    held: bool | None

    @property
    def word(self) -> str:
        """For a reader."""
        return {True: "holds", False: "MISSED", None: "not measured"}[self.held]


def write(folder: Path, part: str, lines: Iterable[Line]) -> list[Line]:
    """Write lines as they come; only when all are there do they take the place of those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished, written = folder / f"{part}.jsonl.new", []
    with unfinished.open("w") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
            file.flush()
            written.append(line)
    unfinished.replace(folder / f"{part}.jsonl")
    return written


def read(folder: Path) -> dict[str, list[Line]]:
    """The lines of every part that was measured."""
    files = {part: folder / f"{part}.jsonl" for part in PARTS}
    return {
        part: [json.loads(line) for line in file.read_text().splitlines()]
        for part, file in files.items()
        if file.exists()
    }


def machine_line(versions: dict[str, Any], images: int, real: bool) -> Line:
    """Where and on what a part was measured."""
    return {
        "kind": "machine",
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 1),
        "images": images,
        "real": real,
        **versions,
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def epoch_seconds(lines: list[Line]) -> dict[tuple[str, str], dict[int, float]]:
    """Median seconds of an epoch, by (model, side) and turn."""
    seconds: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for line in lines:
        if line["kind"] == SPEED:
            seconds[line["model"], line["side"]][line["turn"]] = median(line["epoch_seconds"])
    return seconds


def ratio(lines: list[Line], model: str, peer: str) -> Spread | None:
    """How many times as fast as a peer the scaffold is, turn by turn; None where one of them is missing."""
    seconds = epoch_seconds(lines)
    ours, theirs = seconds.get((model, SCAFFOLD), {}), seconds.get((model, peer), {})
    turns = ours.keys() & theirs.keys()
    return Spread.of(theirs[turn] / ours[turn] for turn in turns) if turns else None


def overhead(lines: list[Line], model: str) -> Spread | None:
    """Seconds of writing for each second of training without it, over the turns; None where it was not measured."""
    shares = []
    for line in lines:
        if line["kind"] == OVERHEAD and line["model"] == model:
            writing = sum(line["parts"].values())
            shares.append(writing / (line["seconds"] - writing))
    return Spread.of(shares) if shares else None


def verdicts(results: dict[str, list[Line]]) -> list[Verdict]:
    """Every target."""
    return [
        *_speed_verdicts(results.get(SPEED, [])),
        *_overhead_verdicts(results.get(OVERHEAD, [])),
        *_startup_verdicts(results.get(STARTUP, [])),
    ]


def _speed_verdicts(lines: list[Line]) -> Iterator[Verdict]:
    for (model, peer), least in LEAST_RATIO.items():
        found = ratio(lines, model, peer)
        measured = f"{found.median:.2f}x ({found.least:.2f} to {found.most:.2f})" if found else "-"
        held = found.median >= least if found else None
        yield Verdict(f"{TITLES[model]} against {LABELS[peer]}", f"at least {least:g}x", measured, held)


def _overhead_verdicts(lines: list[Line]) -> Iterator[Verdict]:
    for model in MODELS:
        found = overhead(lines, model)
        measured = f"{found.median:.2%} ({found.least:.2%} to {found.most:.2%})" if found else "-"
        held = found.median < MOST_OVERHEAD if found else None
        yield Verdict(f"{TITLES[model]}: logging, status and checkpoints", f"under {MOST_OVERHEAD:.0%}", measured, held)


def _startup_verdicts(lines: list[Line]) -> Iterator[Verdict]:
    for line in lines:
        if line["kind"] == "output":
            yield Verdict(f"Start-up: {line['command']}", "its own", "see below", line["held"])
