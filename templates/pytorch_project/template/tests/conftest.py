"""What the tests share: a tiny data set in place of digits, and a project folder of their own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from records import metrics, saved

import train
from data import sources
from engine.config import load_config
from engine.errors import run_script
from engine.progress import Progress

# The project's architecture, the smallest there is of it.
MODEL = yaml.safe_load((Path(__file__).parents[1] / "config.yaml").read_text())["model"]
SMALL = {"cnn": [], "resnet": ["blocks_per_stage=1"], "vit": ["variant=micro", "patch_size=8"]}[MODEL]
TINY_CONFIG = f"""\
model: {MODEL}
dataset: digits
batch_size: 16
epochs: 3
val_fraction: 0.25
log_every: 1
device: cpu
"""
TINY_CONFIG += "".join(f"{setting.replace('=', ': ')}\n" for setting in SMALL)
# Turns config.yaml of any project into one for the digits.
DIGITS = ["--set", "dataset=digits", "num_classes=10", "image_size=32", *SMALL]


@pytest.fixture(autouse=True)
def one_thread():
    """The tests may run beside each other; threads that wait for a core are slower than none."""
    torch.set_num_threads(1)


@pytest.fixture
def load_text(tmp_path, monkeypatch):
    """Loads a configuration file of the given text, with overrides."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(text, *overrides):
        Path("config.yaml").write_text(text)
        return load_config(Path("config.yaml"), list(overrides))

    return write_and_load


@pytest.fixture
def tiny_source(monkeypatch):
    """`digits` with 100 training and 40 test images, learnt in a few batches; the list of the parts that were read."""
    reads = []

    def read(data_dir: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
        reads.append(part)
        generator = np.random.default_rng(len(part))
        labels = np.arange(100 if part == "train" else 40) % 10
        images = generator.integers(0, 60, (len(labels), 32, 32, 3), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[3 * label : 3 * label + 3] += 150  # a bright stripe, its height tells the class
        return images, labels.astype(np.int64)

    monkeypatch.setitem(sources.SOURCES, "digits", replace(sources.SOURCES["digits"], read=read))
    return reads


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_source):
    """An empty project folder with a small configuration, as the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(TINY_CONFIG)
    return tmp_path


@pytest.fixture
def run_train(project):
    """Runs train.py in this process with the given arguments; returns its exit code."""
    return lambda *arguments: run_script(lambda: train.main(list(arguments)))


# With the accuracies below: best.pt and best-0005.pt of epoch 5, best-0002.pt, epoch-0004.pt.
KEEPING = ["--set", "epochs=6", "keep_best=2", "keep_every=4"]


@pytest.fixture
def accuracies(monkeypatch):
    """Every validation gives a prescribed accuracy, which depends on the epoch alone."""

    def end_epoch(self, _, original=Progress.end_epoch):
        return original(self, (0.3, 0.5, 0.4, 0.5, 0.6, 0.2)[self.epoch])

    monkeypatch.setattr(Progress, "end_epoch", end_epoch)


@pytest.fixture
def in_one_go(run_train, project, monkeypatch, accuracies):
    """The checkpoints and the metrics of six epochs without interruption; leaves the project folder clean."""
    folder = project / "reference"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run_train("--config", "../config.yaml", *KEEPING) == 0
    result = saved(), metrics()
    monkeypatch.chdir(project)
    return result
