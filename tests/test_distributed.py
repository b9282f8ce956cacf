"""Training in several processes, which torchrun starts: the numbers of one process, and none of the trouble of many."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from kit.scaffold import new_project

pytestmark = pytest.mark.slow

PATIENCE = 300.0  # seconds that any one thing may take on a busy machine
# 647 training images, so that the last batch of an epoch (71 images) cannot be halved.
SETTINGS = ("batch_size=96", "val_fraction=0.5", "log_every=1", "device=cpu")
VIT = ("variant=micro", "patch_size=8", "warmup_steps=10")
# BatchNorm normalises the images of each process by themselves; with fixed statistics nothing is left to tell apart.
FIXED_STATISTICS = """\
import sys

from torch import nn

import train
from engine.errors import run_script

nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
sys.exit(run_script(train.main))
"""


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project of each model, to be copied."""
    folder = tmp_path_factory.mktemp("templates")
    return {name: new_project(folder / name, model=name, dataset="digits") for name in ("cnn", "vit")}


class Project:
    """A scaffolded project, and what its training wrote."""

    def __init__(self, template: Path, folder: Path, settings: tuple[str, ...]) -> None:
        self.folder = shutil.copytree(template, folder)
        self.settings = (*SETTINGS, *settings)

    def command(self, processes: int, *settings: str, script: str = "train.py", torchrun: tuple[str, ...] = ()) -> Any:
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", *torchrun]
        return [*start, script, "--set", *self.settings, *settings]

    def popen(self, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self.command(*arguments, **options),
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def train(self, *arguments: Any, **options: Any) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        process = self.popen(*arguments, **options)
        with ended(process):
            out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    @property
    def run(self) -> Path:
        """The only one."""
        (folder,) = (self.folder / "runs").iterdir()
        return folder

    def metrics(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key not in ("time", "seconds")} for line in lines]

    def state(self) -> str:
        return json.loads((self.run / "status.json").read_text())["state"]

    def checkpoint(self) -> dict[str, Any]:
        content = torch.load(self.folder / "checkpoints" / "last.pt", weights_only=True)
        return {key: value for key, value in content.items() if key != "run_id"}

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> None:
        """Until so many batches are logged."""
        deadline = time.monotonic() + PATIENCE
        while sum(p.read_bytes().count(b'"train"') for p in self.folder.glob("runs/*/metrics.jsonl")) < step:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        numbers = {key: value for key, value in right.items() if isinstance(value, float)}
        assert {key: left[key] for key in numbers} == pytest.approx(numbers, abs=1e-5, rel=1e-4)
        assert {k: v for k, v in left.items() if k not in numbers} == {k: right[k] for k in right if k not in numbers}


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """The places at which two checkpoints are not equal to the last bit."""
    if isinstance(expected, dict):
        if expected.keys() != found.keys():
            return [where]
        return [d for key in expected for d in differences(expected[key], found[key], f"{where}.{key}")]
    if isinstance(expected, list | tuple):
        pairs = enumerate(zip(expected, found, strict=True))
        return [d for n, pair in pairs for d in differences(*pair, f"{where}[{n}]")]
    equal = torch.equal(expected, found) if isinstance(expected, torch.Tensor) else expected == found
    return [] if equal else [where]


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leaves no process behind."""
    try:
        yield
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


@pytest.mark.parametrize("options", [(), ("accumulation_steps=3",), ("shard=true",)])
def test_vit_learns_as_in_one_process(templates: dict[str, Path], tmp_path: Path, options: tuple[str, ...]) -> None:
    alone = Project(templates["vit"], tmp_path / "alone", (*VIT, *options, "epochs=2"))
    assert alone.train(1)[0] == 0
    shared = Project(templates["vit"], tmp_path / "shared", (*VIT, *options, "epochs=2"))
    code, out, err = shared.train(2)
    assert code == 0, err
    assert out.count("Training complete") == 1
    assert "2 processes" in out
    assert_close(shared.metrics(), alone.metrics())
    assert {path.name for path in shared.run.iterdir()} >= {"metrics.jsonl", "status.json", "sessions.jsonl"}
    assert len(list(shared.run.glob("events*"))) == 1
    assert shared.checkpoint()["model"].keys() == alone.checkpoint()["model"].keys()
    for name, weight in alone.checkpoint()["model"].items():
        torch.testing.assert_close(shared.checkpoint()["model"][name], weight, atol=1e-4, rtol=1e-3)


def test_cnn_learns_as_in_one_process_with_fixed_statistics(templates: dict[str, Path], tmp_path: Path) -> None:
    alone, shared = (Project(templates["cnn"], tmp_path / name, ("epochs=1",)) for name in ("alone", "shared"))
    for project, processes in ((alone, 1), (shared, 2)):
        (project.folder / "fixed.py").write_text(FIXED_STATISTICS)
        code, _, err = project.train(processes, script="fixed.py")
        assert code == 0, err
    assert_close(shared.metrics(), alone.metrics())


def test_sharded_checkpoint_is_continued_by_any_number(templates: dict[str, Path], tmp_path: Path) -> None:
    settings = (*VIT, "shard=true")
    saved_by_two = Project(templates["vit"], tmp_path / "two", settings)
    assert saved_by_two.train(2, "epochs=1")[0] == 0
    for processes in (1, 2, 4):
        project = Project(saved_by_two.folder, tmp_path / f"by-{processes}", settings)
        code, out, err = project.train(processes, "epochs=2")
        assert code == 0, err
        assert "Continuing" in out
        if processes == 1:
            expected = project.metrics()
        assert_close(project.metrics(), expected)


def test_stopped_processes_continue_bit_for_bit(templates: dict[str, Path], tmp_path: Path) -> None:
    settings = (*VIT, "dropout=0.1", "epochs=4")
    whole, stopped = (Project(templates["vit"], tmp_path / name, settings) for name in ("whole", "stopped"))
    assert whole.train(2)[0] == 0
    process = stopped.popen(2)
    with ended(process):
        stopped.wait_for_step(9, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    assert err.count("Interrupted and saved") == 1
    assert stopped.state() == "interrupted"
    assert 0 < stopped.checkpoint()["step"] < whole.checkpoint()["step"]
    assert len(stopped.checkpoint()["rng"]["others"]) == 1
    assert stopped.train(2)[0] == 0
    assert stopped.metrics() == whole.metrics()
    assert differences(whole.checkpoint(), stopped.checkpoint()) == []


@pytest.mark.parametrize("restarts", [0, 1])
def test_dead_process_ends_all_and_a_restart_continues(
    templates: dict[str, Path], tmp_path: Path, restarts: int
) -> None:
    settings = (*VIT, "epochs=4")
    project = Project(templates["vit"], tmp_path / "killed", settings)
    process = project.popen(2, torchrun=(f"--max-restarts={restarts}", "--monitor-interval=1"))
    with ended(process):
        project.wait_for_step(9, process)
        second = next(p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1")
        second.kill()
        _, err = process.communicate(timeout=PATIENCE)
    assert "lost the others: one of them has ended" in err
    if not restarts:
        assert process.returncode == 1
        assert project.state() == "failed"
        assert project.train(2)[0] == 0
    assert process.returncode == (0 if restarts else 1), err
    assert project.state() == "done"
    whole = Project(templates["vit"], tmp_path / "whole", settings)
    assert whole.train(2)[0] == 0
    assert project.metrics() == whole.metrics()
    assert differences(whole.checkpoint(), project.checkpoint()) == []


def test_mistakes_are_one_line(templates: dict[str, Path], tmp_path: Path) -> None:
    project = Project(templates["vit"], tmp_path / "project", VIT)
    code, out, err = project.train(2, "batch_size=718", "epochs=1")
    assert code == 1  # torchrun's own
    assert "error: the last batch of training has 1 images for 2 processes" in err
    assert f'File "{project.folder}' not in err  # a line of a traceback of ours
    assert "Epoch" not in out


def test_loss_that_is_not_finite_in_one_process_stops_all(templates: dict[str, Path], tmp_path: Path) -> None:
    project = Project(templates["vit"], tmp_path / "project", VIT)
    code, _, err = project.train(2, "learning_rate=1e30", "epochs=1", "grad_clip=0", "warmup_steps=0")
    assert code == 1
    assert "the batch and the state before it are in" in err
    failed = torch.load(project.run / "nonfinite.pt", weights_only=True)
    assert len(failed["images"]) == len(failed["labels"]) == 96
    assert project.state() == "failed"
