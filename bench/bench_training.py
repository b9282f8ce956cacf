"""A scaffolded project's training beside what its user would write instead: in the same run, in turns.

    python bench/bench_training.py                     about 90 minutes on two cores; writes docs/training_bench.md
    python bench/bench_training.py --quick             minutes, too noisy to be believed; writes build/training_bench/
    python bench/bench_training.py --models cnn        some of the models
    python bench/bench_training.py --parts overhead    some of: speed, overhead, loader, startup
    python bench/bench_training.py --accuracy 15       accuracy in 15 CPU minutes a run instead; needs KIT_DATA
    python bench/bench_training.py --plot-only         the page and the plots again, from the results that are there

The peers are in bench/training/: a plain PyTorch loop, Lightning (with `--lightning-python`, an interpreter that has
torch, torchvision and lightning) and, for the CNN, the script of the seed document. Images are CIFAR-10 from the folder
in KIT_DATA, or random ones in its format. Results are kept as JSON lines in bench/training/results/. Exit code 0: every
target that was measured holds, 1: one was missed, 2: could not measure.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from training.contestants import (
    LIGHTNING,
    MODELS,
    Arena,
    BenchError,
    epoch_seconds,
    measure_overhead,
    run,
    versions_of,
)
from training.files import ALL_IMAGES, FOLDER, write_cifar10
from training.results import (
    ACCURACY,
    LOADER,
    OVERHEAD,
    SPEED,
    STARTUP,
    TITLES,
    Line,
    machine_line,
    read,
    verdicts,
    write,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DOCS, RESULTS = ROOT / "docs", HERE / "training" / "results"
QUICK_FOLDER = ROOT / "build" / "training_bench"
MISSED, COULD_NOT, INTERRUPTED = 1, 2, 130
TRAINING_SHARE = 0.9  # of the images; the others are for validation
REUSED = {LOADER: "bench_data_pipeline.py", STARTUP: "bench_startup.py"}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """End with code 2."""
        self.exit(COULD_NOT, f"error: {message}\n")


def arguments_of(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the defaults that depend on `--quick` and `--accuracy` filled in."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 images, one turn")
    parser.add_argument("--models", type=_names(MODELS), default=list(MODELS), metavar="NAME,NAME")
    parser.add_argument("--parts", type=_names((SPEED, OVERHEAD, LOADER, STARTUP)), metavar="NAME,NAME")
    parser.add_argument("--images", type=_number(1_000, ALL_IMAGES), help="default 20,000; all for overhead, accuracy")
    parser.add_argument("--epochs", type=_number(2), default=3, help="of a run; the first is not timed (default 3)")
    parser.add_argument("--turns", type=_number(1), help="runs of each side (default 5)")
    parser.add_argument("--lightning-python", metavar="PATH", help="an interpreter that has Lightning")
    parser.add_argument("--accuracy", type=_minutes, metavar="MINUTES", help="CPU minutes a run")
    parser.add_argument("--plot-only", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="takes page, plots and results")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.turns = arguments.images or 2_000, arguments.turns or 1
        arguments.out = arguments.out or QUICK_FOLDER
    if arguments.parts is None:
        arguments.parts = [] if arguments.accuracy else [SPEED, OVERHEAD, LOADER, STARTUP]
    arguments.turns = arguments.turns or 5
    return arguments


def _names(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _number(least: int, most: int = sys.maxsize) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number, at least {least}" + _at_most(most))
        return int(text)

    return parse


def _at_most(most: int) -> str:
    return f" and at most {most}" if most < sys.maxsize else ""


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of minutes above 0")
    return minutes


def _found(program: str | None) -> str | None:
    return program and (shutil.which(program) or program)


class Session:
    """One call of the benchmark: measures part after part, each from files of its own."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments, self.scratch = arguments, scratch
        self.source = Path(os.environ["KIT_DATA"]).resolve() if os.environ.get("KIT_DATA") else None
        # Runs start in other folders; a link is kept as it is, for a virtual environment's interpreter is one.
        self.lightning = str(Path(path).absolute()) if (path := _found(arguments.lightning_python)) else None
        if self.source and not (self.source / FOLDER).is_dir():
            raise BenchError(f"KIT_DATA holds no {FOLDER}; correct or unset the variable")
        if arguments.accuracy and not self.source:
            raise BenchError(f"--accuracy needs real images; set KIT_DATA to the folder that holds {FOLDER}")
        self.arenas: dict[int, Arena] = {}
        self.versions = versions_of(sys.executable)
        if self.lightning:
            self._check_lightning(versions_of(self.lightning, lightning=True))

    def _check_lightning(self, versions: dict[str, Any]) -> None:
        if versions["torch"] != self.versions["torch"]:
            raise BenchError(
                f"--lightning-python has torch {versions['torch']} and this interpreter {self.versions['torch']}; "
                "install the same in both"
            )
        self.versions = {**self.versions, "lightning": versions["lightning"]}

    def arena(self, default_images: int) -> tuple[Arena, Line]:
        """Where a part takes place, and the first line of its results."""
        wanted = self.arguments.images or default_images
        images = wanted // 50 * 50  # five files with as many images of each class
        if images not in self.arenas:
            self.arenas[images] = self._new_arena(images)
        head = {**machine_line(self.versions, images, self.source is not None), "turns": self.arguments.turns}
        return self.arenas[images], head

    def _new_arena(self, images: int) -> Arena:
        folder = self.scratch / f"runs-{images}"
        folder.mkdir()
        if self.source and images == ALL_IMAGES:
            return Arena(folder, self.source, published=True, lightning_python=self.lightning)
        write_cifar10(folder / "data", images, self.source)
        return Arena(folder, folder / "data", published=False, lightning_python=self.lightning)

    def speed(self) -> Iterator[Line]:
        """Seconds of epochs and peak memory: all sides of a model in turns, in the other order every second time."""
        arena, head = self.arena(20_000)
        yield head
        if not self.lightning:
            yield {"kind": "left_out", "side": LIGHTNING, "why": "--lightning-python was not given"}
            print("Lightning is left out: --lightning-python was not given")
        epochs, train_images = self.arguments.epochs, round(TRAINING_SHARE * head["images"])
        for model in self.arguments.models:
            for turn in range(self.arguments.turns):
                sides = arena.sides(model)
                for side in sides if turn % 2 == 0 else sides[::-1]:
                    launch = arena.launch(side, model, epochs)
                    usage = run(launch)
                    seconds = epoch_seconds(launch)
                    shown = " ".join(f"{one:.1f}" for one in seconds)
                    print(
                        f"{TITLES[model]}, {side}, turn {turn + 1}: {shown} s an epoch, {usage.megabytes:.0f} MB",
                        flush=True,
                    )
                    result = {"model": model, "side": side, "turn": turn, "train_images": train_images, **asdict(usage)}
                    yield {"kind": SPEED, **result, "epoch_seconds": seconds}

    def overhead(self) -> Iterator[Line]:
        """Seconds of training and of writing, of one epoch over all images."""
        arena, head = self.arena(ALL_IMAGES)
        yield head
        for turn in range(self.arguments.turns):
            for model in self.arguments.models:
                result = measure_overhead(arena, model, epochs=1)
                writing = sum(result["parts"].values())
                print(f"{TITLES[model]}: {writing:.2f} of {result['seconds']:.1f} s for writing", flush=True)
                yield {"kind": OVERHEAD, "model": model, "turn": turn, **result}

    def reused(self, part: str) -> Iterator[Line]:
        """What another benchmark prints."""
        head = machine_line(self.versions, images=0, real=False)
        script = REUSED[part]
        command = [sys.executable, str(HERE / script), *(["--quick"] if self.arguments.quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, MISSED) or not done.stdout:
            raise BenchError(f"bench/{script} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        print(done.stdout, end="", flush=True)
        yield head
        held = done.returncode == 0
        yield {"kind": "output", "part": part, "command": f"bench/{script}", "text": done.stdout, "held": held}

    def accuracy(self) -> Iterator[Line]:
        """Accuracy against CPU time."""
        from training.accuracy import curves

        arena, head = self.arena(ALL_IMAGES)
        yield head | {"turns": 1}
        yield from curves(arena, self.arguments.accuracy)

    def measure(self, results: Path) -> None:
        """Measure and keep every part that was asked for."""
        measures = {SPEED: self.speed, OVERHEAD: self.overhead}
        for part in self.arguments.parts:
            write(results, part, measures[part]() if part in measures else self.reused(part))
        if self.arguments.accuracy:
            write(results, ACCURACY, self.accuracy())


def report(results_folder: Path, docs: Path) -> int:
    """Write the page and print the verdicts; the exit code.

    Raises:
        BenchError: nothing has been measured.
    """
    from training.page import speed_table, verdict_table, write_page

    results = read(results_folder)
    if not results:
        raise BenchError("there are no results to plot; measure first, without --plot-only")
    if SPEED in results:
        print("\n" + speed_table(results[SPEED]))
    found = verdicts(results)
    print("\n" + verdict_table(found))
    print(f"\nwrote {os.path.relpath(write_page(results, docs))}")
    return MISSED if any(verdict.held is False for verdict in found) else 0


def main(argv: list[str] | None = None) -> int:
    arguments = arguments_of(argv)
    docs, results = (arguments.out, arguments.out / "results") if arguments.out else (DOCS, RESULTS)
    try:
        if not arguments.plot_only:
            with tempfile.TemporaryDirectory() as scratch:
                Session(arguments, Path(scratch)).measure(results)
        return report(results, docs)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return COULD_NOT
    except KeyboardInterrupt:
        print("interrupted; earlier results are kept", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
