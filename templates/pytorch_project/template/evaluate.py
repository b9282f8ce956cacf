"""Evaluate a checkpoint, with the configuration that is stored in it.

    python evaluate.py                                       the best checkpoint on the test images
    python evaluate.py --split val                           the same on the validation images
    python evaluate.py --checkpoint checkpoints/last.pt

Prints accuracy, loss and the accuracy of each class, and writes metrics.json, confusion_matrix.png,
per_class_accuracy.png and misclassified.png to runs/<run id>/evaluation/<split>/. This is the only script that looks at
the test images; choose between models by their validation accuracy. Exit code 0: done, 2: wrong use.
"""

import engine.startup  # noqa: F401  (first: it concerns the imports below)

# isort: split
import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix
from torch import Tensor

from data.dataloader import Loader, load_test_split, load_training_splits, make_loader
from data.folders import FolderSplit
from data.loader import Split
from engine.build import model_of
from engine.checkpoint import BEST, check_same_images, load_checkpoint, load_weights
from engine.config import Config, make_config
from engine.device import pick_device
from engine.errors import EXIT_DONE, run_script
from engine.plots import plot_confusion_matrix, plot_images, plot_per_class_accuracy
from engine.predict import loss_and_accuracy, predict
from engine.run import RUNS, write_json

SHOWN_MISTAKES = 25


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=BEST, metavar="FILE", help=f"default: {BEST}")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="default: test")
    arguments = parser.parse_args(argv)

    checkpoint = load_checkpoint(arguments.checkpoint)
    config = make_config(checkpoint["config"], {key: str(arguments.checkpoint) for key in checkpoint["config"]})
    # The checkpoint may come from a machine with a GPU.
    device = pick_device("cpu" if config.device == "cpu" else "auto")
    loader = make_loader(load_split(arguments.split, config, checkpoint), config, device)
    model = model_of(config, device)
    load_weights(model, checkpoint)
    logits, labels = predict(model, loader)

    folder = RUNS / checkpoint["run_id"] / "evaluation" / arguments.split
    metrics = compute_metrics(logits, labels, loader.dataset.source.classes)
    metrics = {
        "checkpoint": str(arguments.checkpoint),
        "run_id": checkpoint["run_id"],
        "epoch": checkpoint["epoch"],
        "dataset": config.dataset,
        "split": arguments.split,
    } | metrics
    write_results(metrics, logits, labels, loader, folder)
    print_summary(metrics, folder)
    return EXIT_DONE


def load_split(name: str, config: Config, checkpoint: dict[str, Any]) -> Split | FolderSplit:
    """The images to evaluate on.

    Raises:
        UserError: they are not there, or "val" would not be the images that were kept out of training.
    """
    if name == "test":
        return load_test_split(config.dataset, data_dir=config.data_dir, image_size=config.image_size)
    train, val = load_training_splits(
        config.dataset,
        data_dir=config.data_dir,
        val_fraction=config.val_fraction,
        seed=config.seed,
        image_size=config.image_size,
    )
    check_same_images(checkpoint, {"train": train.fingerprint, "val": val.fingerprint})
    return val


def compute_metrics(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Everything that can be counted.

    Args:
        logits: (N, C).
        labels: int64 (N,).
        classes: C names.

    Returns:
        accuracy (0 to 1), loss (mean over images), samples, per_class (name -> accuracy and number of images; accuracy
        None where there are none), confusion_matrix (rows: true class, columns: prediction).
    """
    loss, accuracy = loss_and_accuracy(logits, labels)
    matrix = confusion_matrix(labels, logits.argmax(1), labels=range(len(classes)))
    per_class = {
        name: {"accuracy": float(row[i] / row.sum()) if row.sum() else None, "samples": int(row.sum())}
        for i, (name, row) in enumerate(zip(classes, matrix, strict=True))
    }
    return {
        "accuracy": accuracy,
        "loss": loss,
        "samples": len(labels),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
    }


def find_misclassified(logits: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Every wrongly classified image, the most confident mistake first: index, true and predicted label, confidence."""
    confidence, predicted = logits.softmax(1).max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    return [
        {
            "index": i,
            "true": int(labels[i]),
            "predicted": int(predicted[i]),
            "confidence": round(float(confidence[i]), 4),
        }
        for i in wrong.tolist()
    ]


def write_results(metrics: dict[str, Any], logits: Tensor, labels: Tensor, loader: Loader, folder: Path) -> None:
    """Write metrics.json, with all mistakes in it, and the pictures."""
    classes = loader.dataset.source.classes
    title = f"{metrics['dataset']} {metrics['split']}: accuracy {metrics['accuracy']:.2%} of {len(labels):,} images"
    mistakes = find_misclassified(logits, labels)
    for mistake in mistakes:
        mistake["true"], mistake["predicted"] = classes[mistake["true"]], classes[mistake["predicted"]]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(metrics | {"misclassified": mistakes}, folder / "metrics.json")

    plot_confusion_matrix(np.array(metrics["confusion_matrix"]), classes, title, folder / "confusion_matrix.png")
    accuracies = [entry["accuracy"] or 0.0 for entry in metrics["per_class"].values()]
    plot_per_class_accuracy(accuracies, metrics["accuracy"], classes, title, folder / "per_class_accuracy.png")
    shown = mistakes[:SHOWN_MISTAKES]
    captions = [f"says {m['predicted']} ({m['confidence']:.0%})\nis {m['true']}" for m in shown]
    title = f"The {len(shown)} most confident of {len(mistakes):,} mistakes" if mistakes else "No mistakes"
    pictures = loader.dataset.pictures([mistake["index"] for mistake in shown])
    plot_images(pictures, captions, title, folder / "misclassified.png")


def print_summary(metrics: dict[str, Any], folder: Path) -> None:
    """What a person wants to know first."""
    print(f"\n{metrics['split'].capitalize()} accuracy: {metrics['accuracy']:.2%}", end="")
    print(f"  loss: {metrics['loss']:.4f}  ({metrics['samples']:,} images, {metrics['checkpoint']}", end="")
    print(f" of epoch {metrics['epoch']})\n\nPer-class accuracy:")
    for name, entry in metrics["per_class"].items():
        accuracy = "    -" if entry["accuracy"] is None else f"{entry['accuracy']:6.1%}"
        print(f"  {name:10s}: {accuracy}  of {entry['samples']:,}")
    print(f"\nSaved in {folder}: metrics.json, confusion_matrix.png, per_class_accuracy.png, misclassified.png")


if __name__ == "__main__":
    sys.exit(run_script(main))
