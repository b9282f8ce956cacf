"""Train the ablations beside config.yaml, each with several seeds, and compare their validation accuracies.

    python ablate.py                                    config.yaml and every file of ablations/, with seeds 0, 1, 2
    python ablate.py --only no_positions patch_2        some of them; config.yaml is always there
    python ablate.py --seeds 0 1 --set epochs=20        other seeds, and settings that hold for all

Every cell of this grid is a run of train.py in a folder of its own. Ctrl-C saves the one in progress, and the same
command goes on from there: what is finished is not repeated. Writes table.md, results.json and accuracy.png to
runs/ablations/ (--out FOLDER), after every cell. The test images are not used: what one chooses by them, they no longer
measure. Exit code 0: done, 1: a run failed, 2: wrong use, 130: interrupted and saved.
"""

import engine.startup  # noqa: F401  (first: it concerns the imports below)

# isort: split
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml

from engine.build import model_of
from engine.checkpoint import CONFIG, FREE_KEYS, atomic_file
from engine.config import Config, load_config
from engine.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_WRONG_USE, UserError, run_script
from engine.plots import plot_ablations
from engine.run import RUNS, write_json

PROJECT = Path(__file__).resolve().parent
BASELINE = "config.yaml"
# A run may go on with these changed, but one of another length does not belong into the same table.
COMPARED_KEYS = {"epochs", "patience"}


@dataclass(frozen=True)
class Cell:
    """One ablation with one seed."""

    name: str
    file: Path
    seed: int
    overrides: list[str]
    folder: Path

    @property
    def config(self) -> Config:
        """Its settings."""
        return load_config(self.file, self.overrides)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="ablations to run; default: all of ablations/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key=value", help="change settings for all runs"
    )
    parser.add_argument("--out", type=Path, default=RUNS / "ablations", metavar="FOLDER", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    files = chosen_files(arguments.only)
    cells = grid(files, list(dict.fromkeys(arguments.seeds)), arguments.set, arguments.out)
    for cell in cells:
        check_same_settings(cell)

    for number, cell in enumerate(cells, start=1):
        result = result_of(cell)
        if result:
            print(f"[{number}/{len(cells)}] {cell}: {result['accuracy']:.2%}, finished before", flush=True)
            continue
        print(f"[{number}/{len(cells)}] {cell}: training, see {cell.folder / 'train.log'}", flush=True)
        code = train(cell)
        if code == EXIT_INTERRUPTED:
            print("Interrupted. The same command continues.", file=sys.stderr)
        if code:
            return code if code in (EXIT_WRONG_USE, EXIT_INTERRUPTED) else EXIT_FAILED
        write_results(cells, arguments.out)
    print("\n" + write_results(cells, arguments.out))
    print(f"\nSaved in {arguments.out}: table.md, results.json, accuracy.png")
    return EXIT_DONE


def chosen_files(only: list[str] | None) -> dict[str, Path]:
    """Name -> configuration; the baseline first.

    Raises:
        UserError: there is no ablation of a name.
    """
    found = {path.stem: path for path in sorted((PROJECT / "ablations").glob("*.yaml"))}
    for name in only or []:
        if name not in found and name != BASELINE:
            raise UserError(f"--only {name}: there is no such ablation; there are: {', '.join(found)}")
    chosen = {name: path for name, path in found.items() if only is None or name in only}
    return {BASELINE: PROJECT / BASELINE, **chosen}


def grid(files: dict[str, Path], seeds: list[int], settings: list[str], out: Path) -> list[Cell]:
    """All ablations with the first seed, then with the next one: an early look compares like with like."""
    for setting in settings:
        if setting.partition("=")[0] == "seed":
            raise UserError(f"--set {setting}: name the seeds with --seeds")
    cells = []
    for seed in seeds:
        for name, file in files.items():
            overrides = [*settings, f"seed={seed}"]
            # A run's folder is its current one, from which a relative path would lead elsewhere.
            overrides += [f"data_dir={json.dumps(str(Path(load_config(file, overrides).data_dir).resolve()))}"]
            cells.append(Cell(name, file, seed, overrides, (out / Path(name).stem / f"seed-{seed}").resolve()))
    return cells


def check_same_settings(cell: Cell) -> None:
    """What was trained before with other settings must not stand in the same table.

    Raises:
        UserError: the folder of the cell holds a run with other settings.
    """
    file = cell.folder / CONFIG
    if not file.exists():
        return
    before, now = yaml.safe_load(file.read_text(encoding="utf-8")), cell.config.as_dict()
    for key, value in before.items():
        if (key not in FREE_KEYS or key in COMPARED_KEYS) and value != now.get(key):
            raise UserError(
                f"{cell.folder} was trained with {key} {value!r}, which is {now.get(key)!r} now; "
                "name another folder with --out, or remove that one"
            )


def train(cell: Cell) -> int:
    """Start or continue train.py in the folder of a cell; its exit code."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(PROJECT / "train.py"), "--config", str(cell.file), "--set", *cell.overrides]
    environment = dict(os.environ)
    if "KIT_DATA" in environment:
        environment["KIT_DATA"] = str(Path(environment["KIT_DATA"]).resolve())
    with (cell.folder / "train.log").open("a", encoding="utf-8") as log:
        # In a session of its own, so that Ctrl-C reaches it once, through us.
        process = subprocess.Popen(command, cwd=cell.folder, env=environment, stdout=log, start_new_session=True)

        def pass_on(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        handlers = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return process.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def result_of(cell: Cell) -> dict[str, Any] | None:
    """What a finished run reached: best validation accuracy, its epoch, and seconds; None when it is not finished."""
    for status_file in sorted((cell.folder / RUNS).glob("*/status.json"), reverse=True):
        status = json.loads(status_file.read_text(encoding="utf-8"))
        if status["state"] not in ("done", "stopped_early"):
            continue
        lines = (status_file.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        epochs = [entry for entry in map(json.loads, lines) if entry["kind"] == "epoch"]
        best = max(epochs, key=lambda entry: entry["val_accuracy"])
        seconds = sum(entry["seconds"] for entry in epochs)
        return {"accuracy": best["val_accuracy"], "epoch": best["epoch"], "seconds": seconds}
    return None


def write_results(cells: list[Cell], out: Path) -> str:
    """Write table, results and plot of what is finished; the table."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    configs: dict[str, Config] = {}
    for cell in cells:
        result = result_of(cell)
        if result:
            rows.setdefault(cell.name, {})[cell.seed] = result
            configs.setdefault(cell.name, cell.config)
    if BASELINE not in rows:
        return "nothing is finished yet"
    table = table_of(rows, {name: parameter_count(config) for name, config in configs.items()})
    write_json({"written": round(time.time()), "ablations": rows}, out / "results.json")
    with atomic_file(out / "table.md") as file:
        file.write((table + "\n").encode())
    first = configs[BASELINE]
    title = f"{first.model} on {first.dataset}, {first.epochs} epochs"
    accuracies = {name: [result["accuracy"] for result in seeds.values()] for name, seeds in rows.items()}
    plot_ablations(accuracies, title, out / "accuracy.png")
    return table


def parameter_count(config: Config) -> int:
    """Parameters of the model; takes no memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_of(config, "meta").parameters())


def table_of(rows: dict[str, dict[int, dict[str, Any]]], parameters: dict[str, int]) -> str:
    """Mean and standard deviation over the seeds in Markdown; differences are taken seed by seed, as splits are."""
    baseline = rows[BASELINE]
    lines = [
        "| ablation | parameters | best val accuracy (%) | difference (points) | seeds | minutes a run |",
        "|---|---|---|---|---|---|",
    ]
    for name, seeds in rows.items():
        accuracy = mean_and_deviation([100 * result["accuracy"] for result in seeds.values()])
        shared = [seed for seed in seeds if seed in baseline]
        differences = [100 * (seeds[seed]["accuracy"] - baseline[seed]["accuracy"]) for seed in shared]
        difference = "" if name == BASELINE or not shared else mean_and_deviation(differences, sign="+")
        minutes = statistics.fmean(result["seconds"] for result in seeds.values()) / 60
        lines.append(f"| {name} | {parameters[name]:,} | {accuracy} | {difference} | {len(seeds)} | {minutes:.1f} |")
    return "\n".join(lines)


def mean_and_deviation(values: list[float], sign: str = "") -> str:
    """`71.20 ± 0.31`, with the deviation of a sample; of one value there is none."""
    mean = f"{statistics.fmean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


if __name__ == "__main__":
    sys.exit(run_script(main))
