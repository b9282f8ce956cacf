"""What `kit demo` adds to the verifier's page: the run in numbers and pictures."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kit import __version__
from verify.html import Picture, Section
from verify.report import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE = "#2b6cb0", "#c05621"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained and evaluated run of a scaffolded project, read from its files.

    Args:
        folder: runs/<run id>.
        batches: the "train" lines of metrics.jsonl: step, epoch, loss, accuracy, lr, grad_norm.
        epochs: its "epoch" lines: train_loss, train_accuracy, val_loss, val_accuracy, lr, seconds.
        config: every setting.
        test: metrics.json of the evaluation.
    """

    folder: Path
    batches: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    config: dict[str, Any]
    test: dict[str, Any]

    @property
    def headline(self) -> str:
        """The result in one line."""
        return f"test accuracy {self.test['accuracy']:.2%} of {self.test['samples']:,} images"


def read_run(project: Path) -> Run:
    """Read the run that was evaluated last."""
    results = max(project.glob("runs/*/evaluation/test/metrics.json"), key=lambda path: path.stat().st_mtime)
    folder = results.parents[2]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Run(
        folder=folder,
        batches=[line for line in lines if line["kind"] == "train"],
        epochs=[line for line in lines if line["kind"] == "epoch"],
        config=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        test=json.loads(results.read_text(encoding="utf-8")),
    )


def describe_run(run: Run, data: str, train_command: list[str]) -> list[Section]:
    """The sections of the page.

    Args:
        run: what to show.
        data: which images, and why.
        train_command: what train.py was called with.
    """
    return [_result(run, data), _training(run), _batch(run), _evaluation(run), _configuration(run, train_command)]


def _result(run: Run, data: str) -> Section:
    test, tested_epoch = run.test, run.test["epoch"]
    seconds = sum(epoch["seconds"] for epoch in run.epochs)
    facts = {
        "Test accuracy": f"{test['accuracy']:.2%} of {test['samples']:,} images that training never saw",
        "Test loss": f"{test['loss']:.4f}",
        "Training": f"{plural(run.epochs[-1]['epoch'], 'epoch')} in {seconds:.0f} s",
        "Data": data,
        "Run": f"{run.folder.name}, reported {datetime.now():%Y-%m-%d %H:%M} by kit {__version__}",
    }
    for epoch in run.epochs:
        if epoch["epoch"] == tested_epoch:
            facts["Validation"] = f"{epoch['val_accuracy']:.2%} after epoch {tested_epoch}, whose weights were tested"
    order = ("Test accuracy", "Test loss", "Validation", "Training", "Data", "Run")
    return Section(title="Result", facts={name: facts[name] for name in order if name in facts})


def _training(run: Run) -> Section:
    last = run.epochs[-1]
    alt = (
        f"Loss, accuracy, learning rate and gradient norm over {plural(last['epoch'], 'epoch')}; at the end training "
        f"accuracy {last['train_accuracy']:.1%}, validation accuracy {last['val_accuracy']:.1%}."
    )
    caption = (
        "Training numbers are means over an epoch in which the weights change, on augmented images; so validation may "
        "well be better. The thin line is the mean since the epoch began."
    )
    return Section(title="Training", pictures=[Picture(png=draw_curves(run), alt=alt, caption=caption)])


def _batch(run: Run) -> Section:
    png = (run.folder.parent / "sample_batch.png").read_bytes()
    return Section(
        title="A batch as the network sees it",
        pictures=[
            Picture(
                png=png,
                alt="Sixteen augmented training images with their class names.",
                caption="After augmentation, with normalisation undone. Wrong labels and mangled images show here.",
            )
        ],
    )


def _evaluation(run: Run) -> Section:
    folder = run.folder / "evaluation" / "test"
    wrong = len(run.test["misclassified"])
    pictures = {
        "confusion_matrix.png": "Confusion matrix of the test images: rows are true classes, columns predictions.",
        "per_class_accuracy.png": "Test accuracy of each class: "
        + ", ".join(f"{name} {entry['accuracy'] or 0:.1%}" for name, entry in run.test["per_class"].items()),
        "misclassified.png": f"The most confident of {wrong:,} misclassified test images.",
    }
    return Section(
        title="Evaluation on the test images",
        pictures=[Picture(png=(folder / name).read_bytes(), alt=alt) for name, alt in pictures.items()],
    )


def _configuration(run: Run, train_command: list[str]) -> Section:
    return Section(
        title="Configuration",
        facts={key: str(value) for key, value in run.config.items()},
        text=f"python {shlex.join(train_command)}\npython evaluate.py",
    )


def draw_curves(run: Run) -> bytes:
    """Loss, accuracy, learning rate and gradient norm over the epochs, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(9, 6), layout="constrained")
    (loss, accuracy), (rate, norm) = figure.subplots(2, 2, sharex=True)
    _draw_metric(loss, run, "loss")
    loss.set_ylim(bottom=0)
    _draw_metric(accuracy, run, "accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    accuracy.set_ylim(top=1.005)
    edges = [run.epochs[0]["epoch"] - 1, *(epoch["epoch"] for epoch in run.epochs)]
    rate.stairs([epoch["lr"] for epoch in run.epochs], edges, baseline=None, color=BLUE, linewidth=1.8)
    rate.set_ylim(bottom=0)
    norm.plot(_position(run), [line["grad_norm"] for line in run.batches], color=BLUE, linewidth=1)
    norm.set_ylim(bottom=0)
    if run.config["grad_clip"]:
        norm.axhline(run.config["grad_clip"], color=ORANGE, linewidth=1.2, linestyle="--", label="clipped above")
        norm.legend(frameon=False)
    for axis, title in {loss: "loss", accuracy: "accuracy", rate: "learning rate", norm: "gradient norm"}.items():
        axis.set_title(title, fontsize=11, loc="left")
        axis.grid(axis="y", color="#e5e9ee", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (rate, norm):
        axis.set_xlabel("epoch")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw_metric(axis: Axes, run: Run, name: str) -> None:
    """Training and validation after each epoch, and what training logged in between."""
    axis.plot(*_with_gaps(run, name), color=BLUE, alpha=0.35, linewidth=1)
    for part, color in {"train": BLUE, "val": ORANGE}.items():
        numbers = [epoch["epoch"] for epoch in run.epochs]
        axis.plot(
            numbers,
            [epoch[f"{part}_{name}"] for epoch in run.epochs],
            color=color,
            marker="o",
            markersize=4,
            label=part,
        )
    axis.legend(frameon=False, loc="lower right" if name == "accuracy" else "upper right")


def _position(run: Run) -> list[float]:
    """Of each training line, in epochs."""
    last = run.epochs[-1]
    return [line["step"] * last["epoch"] / last["step"] for line in run.batches]


def _with_gaps(run: Run, name: str) -> tuple[list[float], list[float]]:
    """Positions and values of the training lines, with a gap between epochs, where the mean begins anew."""
    positions, values, epoch = [], [], None
    for position, line in zip(_position(run), run.batches, strict=True):
        if epoch not in (None, line["epoch"]):
            positions.append(position)
            values.append(float("nan"))
        positions.append(position)
        values.append(line[name])
        epoch = line["epoch"]
    return positions, values
