"""The page about the results, its tables and its pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from training.contestants import LIGHTNING, MODELS, SCAFFOLD
from training.results import (
    ACCURACY,
    LABELS,
    LOADER,
    OVERHEAD,
    SPEED,
    STARTUP,
    TITLES,
    Line,
    Verdict,
    epoch_seconds,
    ratio,
    verdicts,
)

PAGE, IMAGES = "training_bench.md", "images"
SPEED_PLOT, ACCURACY_PLOT = "training_speed.svg", "training_accuracy.svg"
LEVELS = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
COLOURS = {SCAFFOLD: "#1b6ca8", "plain": "#9a9a9a", LIGHTNING: "#8a5cc2", "seed": "#d08a2e"}
INTRODUCTION = """# Training speed

Written by `python bench/bench_training.py`. A scaffolded project's own `python train.py` beside what its user would
write instead, on the CPU, in the same run, each in a process of its own and in turns.

- **The scaffold** is what `kit new` makes, unchanged but for the number of epochs (and, for ResNet-20,
  `blocks_per_stage: 3`). Where not all published images are used, its check of their checksums is off as well.
- **Plain loop**: torchvision's CIFAR10 with PIL transforms in a DataLoader with two workers that live on between
  epochs, the same model class in torch's default memory format, the same optimizer, batches of 128; one printed line
  and one checkpoint an epoch. It clips no gradient, which the scaffold does.
- **Lightning**: the plain loop's model and batches in its Trainer, with its default logger and checkpoints; no
  progress bar. It comes from an environment of its own, with the same torch (`--lightning-python`).
- **The seed's script**: the data module and loop of the kit's seed document, with four workers. Its validation split
  takes the augmentation from the training images, so its loader has less to do than the others.

The augmentation is the same in kind for each model: crop and flip for all, colour jitter for the CNN, RandAugment for
the ViT. Models and settings of the peers are read from the rendered project."""
HOW_SPEED = """\
Images a second are training images, and the time is that from the end of one epoch's validation to the end of the
next one's: training, validation, logging and checkpoints. The first epoch of a run is not counted. Ratios are medians
of those of the turns, in brackets the least and the greatest. CPU time is that of the whole run, imports and loader
processes included. Memory is the peak of the largest process, without the loader processes that the peers start
beside it."""
HOW_OVERHEAD = """\
Measured inside of one run of the scaffold, on as many images as a whole epoch has: a clock at every call that writes
(`Run.log`, `Run.plot`, `Run.update_status`, building and saving checkpoints), in relation to the rest of the
training. It is one epoch, so both checkpoints are written in it, whatever `checkpoint_every` says. What TensorBoard's
own thread does beside the training is not in it."""
HOW_ACCURACY = """\
Each trains with its own recipe until its budget of CPU time is used up: user and system time of the process and its
loader workers, from its start. The number of epochs, and with it the end of the learning rate schedule, is what the
budget allows by the cost of an epoch in a trial run. One run each. Validation accuracy is that on 5,000 of the
training images, of which each side sets its own aside."""


def write_page(results: dict[str, list[Line]], folder: Path) -> Path:
    """Write the page and its pictures to `folder`."""
    sections = [INTRODUCTION, _section("Targets", verdict_table(verdicts(results)))]
    for part, describe in DESCRIPTIONS.items():
        if part in results:
            sections.append(describe(results[part]))
    sections.append(_section("Measured on", _machines(results)))
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    if SPEED in results:
        plot_speed(results[SPEED], folder / IMAGES / SPEED_PLOT)
    if ACCURACY in results:
        plot_accuracy(results[ACCURACY], folder / IMAGES / ACCURACY_PLOT)
    page = folder / PAGE
    page.write_text("\n\n".join(sections) + "\n")
    return page


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def verdict_table(found: list[Verdict]) -> str:
    """Targets, what was measured, and whether they hold."""
    return table(("what", "target", "measured", ""), ((one.name, one.wanted, one.measured, one.word) for one in found))


def speed_table(lines: list[Line]) -> str:
    """A row a model and side; sides that were left out have one as well."""
    runs, rows = [line for line in lines if line["kind"] == SPEED], []
    for model, side in epoch_seconds(lines):
        mine = [run for run in runs if (run["model"], run["side"]) == (model, side)]
        seconds, cpu, megabytes = (median(column) for column in zip(*map(_costs, mine), strict=True))
        speed = f"{mine[0]['train_images'] / seconds:,.0f}"
        found = ratio(lines, model, side)
        factor = f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})" if found and side != SCAFFOLD else "1"
        rows.append([TITLES[model], LABELS[side], speed, f"{seconds:.1f}", factor, f"{cpu:.0f}", f"{megabytes:.0f}"])
    left_out = [line for line in lines if line["kind"] == "left_out"]
    rows += [["all", LABELS[line["side"]], f"not measured: {line['why']}", "", "", "", ""] for line in left_out]
    heads = ("model", "who", "images a second", "seconds an epoch", "the scaffold is as fast, times")
    return table((*heads, "CPU-seconds of the run", "peak memory, MB"), rows)


def _costs(run: Line) -> tuple[float, float, float]:
    return median(run["epoch_seconds"]), run["cpu_seconds"], run["megabytes"]


def _describe_speed(lines: list[Line]) -> str:
    picture = f"![Images a second of each model and side]({IMAGES}/{SPEED_PLOT})"
    return _section("End to end", HOW_SPEED, speed_table(lines), picture)


def _describe_overhead(lines: list[Line]) -> str:
    rows = []
    for model in MODELS:
        runs = [line for line in lines if line["kind"] == OVERHEAD and line["model"] == model]
        if runs:
            parts = {name: median(run["parts"].get(name, 0) for run in runs) for name in runs[0]["parts"]}
            detail = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in parts.items())
            rows.append([TITLES[model], f"{median(run['seconds'] for run in runs):.1f}", detail])
    return _section(
        "What logging and checkpoints cost", HOW_OVERHEAD, table(("model", "seconds in all", "writing, ms"), rows)
    )


def _describe_output(lines: list[Line]) -> str:
    outputs = [line for line in lines if line["kind"] == "output"]
    title = {LOADER: "The loader alone", STARTUP: "Start-up"}[outputs[0]["part"]]
    blocks = [f"`python {line['command']}` prints:\n\n```\n{line['text'].strip()}\n```" for line in outputs]
    return _section(title, *blocks)


def _describe_accuracy(lines: list[Line]) -> str:
    rows = []
    for (side, model), points in _curves(lines).items():
        reached = [_minutes_to(points, level) for level in LEVELS]
        best = max(point["val_accuracy"] for point in points)
        rows.append(
            [f"{LABELS[side]}, {TITLES[model]}", f"{len(points)} of {points[0]['epochs']}", f"{best:.1%}", *reached]
        )
    heads = ("who", "epochs", "best", *(f"minutes to {level:.0%}" for level in LEVELS))
    picture = f"![Validation accuracy against CPU minutes]({IMAGES}/{ACCURACY_PLOT})"
    budget = next(line["budget"] for line in lines if line["kind"] == ACCURACY)
    return _section(f"Accuracy in {budget:g} CPU minutes", HOW_ACCURACY, table(heads, rows), picture)


DESCRIPTIONS = {
    SPEED: _describe_speed,
    OVERHEAD: _describe_overhead,
    LOADER: _describe_output,
    STARTUP: _describe_output,
    ACCURACY: _describe_accuracy,
}


def _curves(lines: list[Line]) -> dict[tuple[str, str], list[Line]]:
    points = [line for line in lines if line["kind"] == ACCURACY]
    keys = dict.fromkeys((point["side"], point["model"]) for point in points)
    return {key: [point for point in points if (point["side"], point["model"]) == key] for key in keys}


def _minutes_to(points: list[Line], level: float) -> str:
    minutes = [point["cpu_minutes"] for point in points if point["val_accuracy"] >= level]
    return f"{minutes[0]:.1f}" if minutes else "-"


def _machines(results: dict[str, list[Line]]) -> str:
    rows = []
    for part, lines in results.items():
        at = lines[0]
        images = f"{at['images']:,} {'real' if at['real'] else 'random'}" if at["images"] else "its own"
        lightning = f", Lightning {at['lightning']}" if "lightning" in at else ""
        machine = f"{at['processor']}, {at['cores']} cores, {at['memory_gb']} GB, {at['system']}"
        software = f"Python {at['python']}, torch {at['torch']}, torchvision {at['torchvision']}{lightning}"
        turns = at.get("turns", 1)
        rows.append([part, at["date"], machine, software, at["threads"], images, turns, at["load"]])
    heads = ("part", "date", "machine", "software", "torch's threads", "images, validation included", "turns")
    return table((*heads, "load average before"), rows)


def _section(title: str, *texts: str) -> str:
    return "\n\n".join([f"## {title}", *texts])


def plot_speed(lines: list[Line], path: Path) -> None:
    """Bars: images a second, medians of the turns, a group a model."""
    seconds = epoch_seconds(lines)
    train_images = {line["model"]: line["train_images"] for line in lines if line["kind"] == SPEED}
    models = [model for model in MODELS if model in train_images]
    figure, axes = _figure(len(models))
    for axis, model in zip(axes, models, strict=True):
        sides = [side for side in LABELS if (model, side) in seconds]
        speeds = [train_images[model] / median(seconds[model, side].values()) for side in sides]
        bars = axis.barh([LABELS[side] for side in sides], speeds, color=[COLOURS[side] for side in sides])
        axis.bar_label(bars, fmt="{:,.0f}", padding=3)
        axis.set(title=TITLES[model], xlabel="images a second")
        axis.margins(x=0.2)
        axis.invert_yaxis()
    _save(figure, path)


def plot_accuracy(lines: list[Line], path: Path) -> None:
    """Curves: validation accuracy after each epoch against CPU minutes."""
    figure, (axis,) = _figure(1)
    for (side, model), points in _curves(lines).items():
        minutes, accuracies = zip(
            *((point["cpu_minutes"], 100 * point["val_accuracy"]) for point in points), strict=True
        )
        style = "--" if model == "resnet" else "-"
        label = f"{LABELS[side]}, {TITLES[model]}"
        axis.plot(minutes, accuracies, style, marker="o", markersize=3, color=COLOURS[side], label=label)
    axis.set(xlabel="CPU minutes", ylabel="validation accuracy, %")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path)


def _figure(columns: int) -> tuple[Any, list[Any]]:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "kit"  # the same picture for the same numbers
    width = 4.2 * columns if columns > 1 else 6.4
    figure, axes = pyplot.subplots(1, columns, figsize=(width, 3.2 if columns > 1 else 4), squeeze=False)
    return figure, list(axes[0])


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
