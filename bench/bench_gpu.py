"""The scaffold's training on a GPU: images a second of whole epochs, by model, batch size, precision and compilation.

python bench/bench_gpu.py [--seconds N] [--models cnn resnet20 vit]

Random images of CIFAR-10's size and number stand for CIFAR-10, so nothing is downloaded. Each row is the project's own
`Trainer`: loader, augmentation, loss, clipping, optimizer, logging, validation and a checkpoint an epoch. The first
epoch, which compiles and warms up, counts for nothing. Ends with 2 where there is no GPU (`--device cpu --images 1000`
shows that the script itself works).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "pytorch_project" / "template"
sys.path.insert(0, str(TEMPLATE))

# isort: split
from data import sources  # noqa: E402
from engine.config import load_config  # noqa: E402
from engine.device import choose_compute  # noqa: E402
from engine.progress import Progress  # noqa: E402
from engine.run import Run  # noqa: E402
from engine.stop import GracefulStop  # noqa: E402
from train import Trainer  # noqa: E402

EPOCHS = 4
MODELS = {
    "cnn": ["model=cnn"],
    "resnet20": ["model=resnet", "blocks_per_stage=3", "optimizer=sgd"],
    "vit": ["model=vit", "variant=micro", "patch_size=4", "optimizer=adamw"],
}
WAYS = (
    ["precision=fp32"],
    ["precision=auto"],
    ["precision=bf16"],
    ["precision=auto", "compile=true"],
    ["precision=bf16", "compile=true"],
)


def random_images(count: int) -> Callable[[Path, str], tuple[np.ndarray, np.ndarray]]:
    """A reader of `count` training images of CIFAR-10's size: uint8 (N, 32, 32, 3) and int64 (N,)."""

    def read(_data_dir: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(part == "train")
        return generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), generator.integers(0, 10, count)

    return read


def epochs_of(settings: list[str]) -> list[float]:
    """Seconds of the epochs of a run, validation included."""
    fixed = ["dataset=cifar10", f"epochs={EPOCHS}", "patience=99"]
    config = load_config(TEMPLATE / "config.yaml", [*fixed, *settings])
    trainer = Trainer(config, choose_compute(config))
    seconds: list[float] = []
    with Run(trainer.run_id, config, Progress(), EPOCHS * len(trainer.train_loader)) as run, GracefulStop() as stop:
        write = run.log

        def log(kind: str, **values: Any) -> None:
            seconds.extend([values["seconds"]] if kind == "epoch" else [])
            write(kind, **values)

        run.log = log  # type: ignore[method-assign]
        trainer.fit(run, stop)
    return seconds


def main() -> int:
    """Print a row for every way; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no row after that")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batches", nargs="*", type=int, default=[128, 1024])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu measures a GPU, and PyTorch finds none here", file=sys.stderr)
        return 2
    source = sources.SOURCES["cifar10"]
    sources.SOURCES["cifar10"] = replace(source, read=random_images(arguments.images))
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {arguments.images:,} images, a tenth of them for validation\n")
    print("| model | batch | settings | images/s | first epoch (s) | GPU memory (MiB) |\n|---|---|---|---|---|---|")
    ways = itertools.product(arguments.batches, WAYS, arguments.models)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        started = time.monotonic()
        for batch, way, model in ways:
            if time.monotonic() - started > arguments.seconds:
                break
            torch.cuda.reset_peak_memory_stats() if arguments.device == "cuda" else None
            with contextlib.redirect_stdout(io.StringIO()):
                seconds = epochs_of([f"device={arguments.device}", *MODELS[model], f"batch_size={batch}", *way])
            memory = torch.cuda.max_memory_allocated() / 2**20 if arguments.device == "cuda" else 0
            images = arguments.images / statistics.median(seconds[1:])
            cells = [model, batch, ", ".join(way), f"{images:,.0f}", f"{seconds[0]:.1f}", f"{memory:,.0f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        os.chdir("/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
