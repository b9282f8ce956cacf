"""What the peers share: their arguments, images, model and optimizer.

The settings come from the rendered project's config.yaml, so that both sides are always given the same work.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets.cifar
import yaml
from torch import nn, optim
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import CIFAR10

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
WORKERS = 2
OPTIONS: dict[str, dict[str, Any]] = {"cnn": {}, "resnet": {"blocks_per_stage": 3}, "vit": {"variant": "micro"}}

# The folder may hold fewer images than the published one, or random ones: other checksums.
torchvision.datasets.cifar.check_integrity = lambda path, md5=None: True


@dataclass(frozen=True)
class Task:
    """What a peer is asked to do.

    Args:
        config: the scaffold's settings for the same model.
        data: root of the data set.
        model: "cnn", "resnet" or "vit".
        epochs: to train.
        log: file that gets a line an epoch.
    """

    config: dict[str, Any]
    data: Path
    model: str
    epochs: int
    log: Path

    def end_of_epoch(self, epoch: int, val_accuracy: float) -> None:
        """Note the time; called after an epoch's validation and before its checkpoint, as train.py does."""
        line = {"kind": "epoch", "epoch": epoch, "val_accuracy": val_accuracy, "time": time.time()}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")


def task_from_arguments() -> Task:
    """Read the command line, and let `models` be that of the rendered project."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=OPTIONS, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    arguments = parser.parse_args()
    sys.path.append(str(arguments.project))
    config = yaml.safe_load((arguments.project / "config.yaml").read_text())
    return Task(config, arguments.data, arguments.model, arguments.epochs, arguments.log)


def model_of(task: Task) -> nn.Module:
    """The template's model, in the memory format that torch gives it."""
    from models.model import build_model

    return build_model(task.model, 10, **OPTIONS[task.model])


def optimizer_of(task: Task, model: nn.Module) -> optim.Optimizer:
    """Of the scaffold's kind and settings, over all parameters alike."""
    config = task.config
    kind = {"adam": optim.Adam, "adamw": optim.AdamW, "sgd": optim.SGD}[config["optimizer"]]
    options = {"momentum": config["momentum"]} if kind is optim.SGD else {}
    return kind(model.parameters(), lr=config["learning_rate"], weight_decay=config["weight_decay"], **options)


def loaders_of(task: Task) -> tuple[DataLoader, DataLoader]:
    """Training and validation batches as torchvision's documentation makes them: PIL transforms in loader processes.

    The workers live on between epochs. Many loops leave that out; it is in the peer's favour.
    """
    plain = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    training = transforms.Compose([*augmentation_of(task.config), *plain])
    train_images = CIFAR10(task.data, train=True, transform=training)
    val_images = CIFAR10(task.data, train=True, transform=transforms.Compose(plain))
    order = torch.randperm(len(train_images), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = round(task.config["val_fraction"] * len(order))
    options = {"batch_size": task.config["batch_size"], "num_workers": WORKERS, "persistent_workers": True}
    return (
        DataLoader(Subset(train_images, order[held_out:]), shuffle=True, **options),
        DataLoader(Subset(val_images, order[:held_out]), **options),
    )


def augmentation_of(config: dict[str, Any]) -> list[Any]:
    """The same kinds of change as the scaffold makes with these settings."""
    steps: list[Any] = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    jitter, magnitude = config.get("color_jitter", 0), config["rand_augment"]
    if magnitude:
        steps.append(transforms.RandAugment(num_ops=2, magnitude=magnitude))
    elif jitter:
        steps.append(transforms.ColorJitter(brightness=jitter, contrast=jitter))
    return steps
