"""A training that is killed again and again ends as one that never was: bit for bit, with nothing left over.

KILLS=30 asks for more than the six kills of CI, over the three models. Each falls at a random place, which depends on
its number alone: between two lines of the metrics, amidst the bytes of a checkpoint, or before this takes the place of
the one before.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.scaffold import new_project

KILLS = int(os.environ.get("KILLS", "6"))
KINDS = ("step", "write", "rename")
KILLED = -9
PATIENCE = 300.0  # seconds that any one thing may take on a busy machine

# Between them: several ways to save, a schedule by step, momentum and Adam, batch norm, and dropout, which draws from
# the global generator.
MODELS = {
    "cnn": ("keep_best=2",),
    "resnet": ("blocks_per_stage=1", "checkpoint_every=3", "keep_every=2"),
    "vit": ("variant=micro", "dropout=0.1", "warmup_steps=10", "accumulation_steps=2"),
}
SETTINGS = ("epochs=4", "batch_size=96", "val_fraction=0.5", "log_every=1", "device=cpu")


@dataclass
class Project:
    """A scaffolded project in which one training runs, over as many processes as it takes."""

    folder: Path
    settings: tuple[str, ...]

    def start(self, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "train.py", "--set", *self.settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        with self.log.open("a") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, text=True, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def run(self) -> Path:
        """The folder of the only run; a kill must not make a second one."""
        (folder,) = (self.folder / "runs").iterdir()
        return folder

    def status(self) -> dict[str, Any]:
        """Empty before there is any; whatever happens, it can be read."""
        paths = list((self.folder / "runs").glob("*/status.json"))
        return json.loads(paths[0].read_text()) if paths else {}

    def lines(self) -> int:
        """How many lines of metrics there are."""
        return sum(path.read_bytes().count(b"\n") for path in (self.folder / "runs").glob("*/metrics.jsonl"))

    def metrics(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key not in ("time", "seconds")} for line in lines]

    def checkpoints(self) -> dict[str, Any]:
        """File name -> content, without the name of the run, in which there is a time."""
        files = {path.name: torch.load(path, weights_only=True) for path in self.folder.glob("checkpoints/*.pt")}
        return {name: {k: v for k, v in content.items() if k != "run_id"} for name, content in files.items()}

    def results(self) -> list[str]:
        """The names of all files that training left here, hidden ones too."""
        paths = [path for name in ("checkpoints", "runs") for path in (self.folder / name).rglob("*")]
        names = {path.relative_to(self.folder).as_posix().replace(self.run.name, "RUN") for path in paths}
        return sorted(name for name in names if "events.out.tfevents" not in name)  # one for each process

    def half_written(self) -> list[Path]:
        return list(self.folder.glob("checkpoints/.*.pt-*"))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_ends_as_if_never_killed(model: str, tmp_path: Path) -> None:
    template = new_project(tmp_path / "template", model=model, dataset="digits")
    whole = copy(template, "whole", model)
    assert whole.start().wait(PATIENCE) == 0, whole.log.read_text()

    kills = [number for number in range(KILLS) if list(MODELS)[number % len(MODELS)] == model]
    rounds = 0
    while kills:
        rounds += 1
        project = copy(template, f"killed-{rounds}", model)
        while kills and kill_once(project, whole, kills[0]):
            kills.pop(0)
        assert project.start().wait(PATIENCE) == 0, project.log.read_text()
        compare(project, whole)


def copy(template: Path, name: str, model: str) -> Project:
    return Project(shutil.copytree(template, template.with_name(name)), (*SETTINGS, *MODELS[model]))


def kill_once(project: Project, whole: Project, number: int) -> bool:
    """Start, or continue, and kill; whether that came before the end of the training."""
    rng = random.Random(number)
    kind = KINDS[(number + number // len(MODELS)) % len(KINDS)]
    if kind == "step":
        killed = kill_at_line(project, rng.randrange(1, whole.lines()), rng.uniform(0, 0.1))
    else:
        size = (whole.folder / "checkpoints" / "last.pt").stat().st_size
        place = f"{kind}:{rng.randrange(1, 4)}:{rng.randrange(1, size * 9 // 10)}"
        process = project.start(KILL_IN=place, PYTHONPATH=str(Path(__file__).parent / "killing"))
        code = process.wait(PATIENCE)
        assert code in (0, KILLED), project.log.read_text()
        killed = code == KILLED
        assert bool(project.half_written()) == killed
    project.status()
    return killed


def kill_at_line(project: Project, line: int, delay: float) -> bool:
    """Kill a little after a line of metrics is there; at once if it was there before."""
    process = project.start()
    deadline = time.monotonic() + PATIENCE
    while project.status().get("pid") != process.pid or project.lines() < line:
        assert process.poll() in (None, 0), project.log.read_text()
        assert time.monotonic() < deadline
        if process.returncode == 0:
            return False
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    return process.wait() == KILLED


def compare(project: Project, whole: Project) -> None:
    log = project.log.read_text()
    assert "Traceback" not in log
    assert project.metrics() == whole.metrics(), log
    expected, found = whole.checkpoints(), project.checkpoints()
    assert found.keys() == expected.keys(), log
    assert [difference for name in expected for difference in differences(expected[name], found[name], name)] == []
    assert project.results() == whole.results(), log
    assert project.status()["state"] == "done"


def differences(expected: Any, found: Any, where: str) -> list[str]:
    """The places at which two checkpoints are not equal to the last bit."""
    if isinstance(expected, dict):
        if expected.keys() != found.keys():
            return [where]
        return [d for key in expected for d in differences(expected[key], found[key], f"{where}.{key}")]
    if isinstance(expected, list | tuple):
        if len(expected) != len(found):
            return [where]
        return [
            d for n, pair in enumerate(zip(expected, found, strict=True)) for d in differences(*pair, f"{where}[{n}]")
        ]
    equal = torch.equal(expected, found) if isinstance(expected, torch.Tensor) else expected == found
    return [] if equal else [where]
