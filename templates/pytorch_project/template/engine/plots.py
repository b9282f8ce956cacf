"""The pictures of an evaluation, as PNG files. Figures are objects of their own: no display, no global state."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

BLUE, ORANGE = "#2b6cb0", "#c05621"


def plot_confusion_matrix(matrix: np.ndarray, classes: tuple[str, ...], title: str, path: Path) -> None:
    """Rows are true classes, columns predictions; the shade is the share of the row, the numbers are images.

    Args:
        matrix: int (C, C).
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = max(4.5, 0.62 * len(classes) + 1.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if max(map(len, classes)) > 2:
        axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axis.set_xticks(range(len(classes)), classes)
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(title)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if share[row, column] > 0.5 else "#1a202c"
            axis.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(picture, shrink=0.8, label="share of the true class").outline.set_visible(False)
    figure.savefig(path, dpi=150)


def plot_per_class_accuracy(
    accuracies: list[float], overall: float, classes: tuple[str, ...], title: str, path: Path
) -> None:
    """One bar a class, the best on top, with the overall accuracy as a line; accuracies are 0 to 1."""
    order = np.argsort(accuracies)
    percent = 100 * np.array(accuracies)[order]
    figure = Figure(figsize=(7, 0.34 * len(classes) + 1.4), layout="constrained")
    axis = figure.subplots()
    axis.barh([classes[i] for i in order], percent, color=BLUE, height=0.7)
    for position, value in enumerate(percent):
        inside = value > 12  # a shorter bar has no room for its number
        axis.text(
            1.5 if inside else value + 1.5,
            position,
            f"{value:.1f}%",
            va="center",
            fontsize=9,
            color="white" if inside else "black",
        )
    axis.axvline(100 * overall, color=ORANGE, linewidth=1.5)
    axis.annotate(
        f"overall {overall:.1%}",
        (100 * overall, 1),
        xycoords=axis.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=ORANGE,
        fontsize=9,
    )
    axis.set_xlim(0, 105)
    axis.set_ylim(-0.6, len(classes) - 0.4)
    axis.tick_params(axis="y", length=0)
    axis.set_xticks(range(0, 101, 20))
    axis.set_xlabel("accuracy (%)")
    axis.set_title(title, pad=18)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=150)


def plot_ablations(accuracies: dict[str, list[float]], title: str, path: Path) -> None:
    """A row for each ablation, the first on top: a dot a seed, a bar for mean and standard deviation; 0 to 1."""
    figure = Figure(figsize=(7, 0.42 * len(accuracies) + 1.4), layout="constrained")
    axis = figure.subplots()
    for row, values in enumerate(accuracies.values()):
        percent = 100 * np.array(values)
        axis.scatter(percent, np.full(len(percent), row), color=BLUE, alpha=0.45, s=22, linewidths=0)
        deviation = percent.std(ddof=1) if len(percent) > 1 else 0.0
        axis.errorbar(percent.mean(), row, xerr=deviation, fmt="|", color=ORANGE, markersize=14, capsize=4)
    first = 100 * float(np.mean(next(iter(accuracies.values()))))
    axis.axvline(first, color="#a0aec0", linewidth=1, linestyle=":", zorder=0)
    axis.set_yticks(range(len(accuracies)), list(accuracies))
    axis.set_ylim(len(accuracies) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("best validation accuracy (%): a dot a seed, mean and standard deviation")
    axis.set_title(title)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=150)


def plot_images(pixels: np.ndarray, captions: list[str], title: str, path: Path) -> None:
    """A grid of images, each under its caption.

    Args:
        pixels: uint8, or float in [0, 1]: (N, H, W, 3).
        captions: N of them.
    """
    columns = max(1, math.ceil(math.sqrt(len(pixels))))
    rows = max(1, math.ceil(len(pixels) / columns))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    figure = Figure(figsize=(1.7 * columns, (1.5 + 0.2 * lines) * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image, caption in zip(axes, pixels, captions, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(caption, fontsize=9)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=150)
