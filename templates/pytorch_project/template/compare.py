"""Compare the losses of two runs: where they part, and how far.

    python compare.py runs/A runs/B                 must be equal to the last bit
    python compare.py runs/A runs/B --tolerance 0.01

A run is a folder in runs/, or any other with a metrics.jsonl. Prints each epoch of both, and draws the training losses
in runs/compare.png. Exit code 0: no training loss differs by more than the tolerance, 1: one does, 2: wrong use.
"""

import engine.startup  # noqa: F401  (first: it concerns the imports below)

# isort: split
import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from engine.errors import EXIT_DONE, EXIT_FAILED, UserError, run_script
from engine.run import RUNS

PICTURE = RUNS / "compare.png"
Lines = dict[int, dict[str, Any]]
SHOWN = ("train_loss", "val_loss", "val_accuracy")  # of an epoch


def read_run(folder: Path) -> tuple[Lines, Lines]:
    """The lines of metrics.jsonl about some batches, by step, and those about epochs, by number.

    Raises:
        UserError: there are none.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(p.parent.as_posix() for p in RUNS.glob("*/metrics.jsonl"))[-5:]) or "none yet"
        raise UserError(f"{path} does not exist; name the folder of a run ({known})")
    batches, epochs = {}, {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            if entry["kind"] == "train":
                batches[entry["step"]] = {"loss": entry["loss"]}
            else:
                epochs[entry["epoch"]] = {name: entry[name] for name in SHOWN}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number}: is no line of metrics; is the run still going on?") from None
    if not batches:
        raise UserError(f"{path} has no training losses yet")
    return batches, epochs


def difference(left: dict[str, Any], right: dict[str, Any]) -> float:
    """Between two losses; infinite if one alone is not finite."""
    a, b = left["loss"], right["loss"]
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    return abs(a - b)


def print_epochs(left: Lines, right: Lines) -> None:
    """Both runs side by side, epoch by epoch."""
    print("epoch  " + "  ".join(f"{name:^23}" for name in SHOWN))
    for epoch in sorted(left.keys() & right.keys()):
        pairs = ([_number(lines[epoch][name]) for lines in (left, right)] for name in SHOWN)
        print(f"{epoch:5}  " + "  ".join(f"{a} {b}" for a, b in pairs))


def _number(value: float | None) -> str:
    return f"{'not finite':>11}" if value is None else f"{value:11.6f}"


def draw(runs: dict[str, Lines]) -> None:
    """The training loss of each run over its batches."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for (name, lines), style in zip(runs.items(), ("-", "--"), strict=True):
        axis.plot(list(lines), [line["loss"] for line in lines.values()], style, label=name, linewidth=1.5)
    axis.set_xlabel("batches")
    axis.set_ylabel("training loss, mean of the epoch so far")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest difference of a loss (default 0)")
    arguments = parser.parse_args(argv)
    first, second = arguments.runs
    (left, left_epochs), (right, right_epochs) = read_run(first), read_run(second)
    common = sorted(left.keys() & right.keys())
    if not common:
        raise UserError(f"{first} and {second} have no logged batch in common; run both with the same log_every")
    print_epochs(left_epochs, right_epochs)
    draw({f"A: {first.name}": left, f"B: {second.name}": right})
    differences = {step: difference(left[step], right[step]) for step in common}
    parted = next((step for step, value in differences.items() if not value <= arguments.tolerance), None)
    print(f"{len(common)} losses in common, the largest difference is {max(differences.values()):.3g}; {PICTURE}")
    if parted is None:
        return EXIT_DONE
    print(f"they part at batch {parted}: {left[parted]['loss']} and {right[parted]['loss']}")
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(run_script(main))
