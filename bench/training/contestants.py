"""Who trains: the scaffold as its user runs it, and the peers. Each run is a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import Usage, kit, usage_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCAFFOLD, LIGHTNING, SEED, PLAIN = "scaffold", "lightning", "seed", "plain"
PEERS = {PLAIN: "plain.py", LIGHTNING: "lightning_loop.py", SEED: "seed.py"}
MODELS = ("cnn", "resnet", "vit")
# `kit new --model resnet` starts with one block a stage; ResNet-20 has three. The other two are the defaults.
SETTINGS = {"resnet": ["blocks_per_stage=3"]}

# What a scaffolded project needs to read a folder whose checksums are not those of the published files.
ANY_CHECKSUM = """

import torchvision.datasets.cifar

torchvision.datasets.cifar.check_integrity = lambda path, md5=None: True
"""


class BenchError(Exception):
    """Nothing could be measured; the text is one sentence: what, where, how to mend it."""


@dataclass(frozen=True)
class Launch:
    """A training run to be started.

    Args:
        title: for messages.
        command, folder, environment: of the process.
        log: pattern, in the folder, of the file that gets a line an epoch.
    """

    title: str
    command: list[str]
    folder: Path
    environment: dict[str, str]
    log: str

    def epochs(self) -> list[dict[str, Any]]:
        """What the run has noted so far, an entry an epoch."""
        lines = [line for file in self.folder.glob(self.log) for line in file.read_text().splitlines(keepends=True)]
        entries = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be in the making
        return [entry for entry in entries if entry["kind"] == "epoch"]

    def last_words(self) -> str:
        """The end of what the process printed on its standard error."""
        lines = self.errors.read_text(errors="replace").split("\n")
        return next((line.strip()[-200:] for line in reversed(lines) if line.strip()), "no message")

    @property
    def errors(self) -> Path:
        """Takes the standard error: progress bars, warnings, the reason of a failure."""
        return self.folder.parent / "stderr.txt"


@dataclass(frozen=True)
class Arena:
    """Where the runs take place.

    Args:
        scratch: a temporary folder.
        data: root of the data set.
        published: whether those are the published files, unchanged.
        lightning_python: an interpreter that has Lightning, if there is one.
    """

    scratch: Path
    data: Path
    published: bool
    lightning_python: str | None = None
    projects: dict[str, Path] = field(default_factory=dict)

    def sides(self, model: str) -> list[str]:
        """Who trains this model."""
        lightning = [LIGHTNING] if self.lightning_python else []
        return [SCAFFOLD, PLAIN, *lightning, *([SEED] if model == "cnn" else [])]

    def project(self, model: str) -> Path:
        """A project made by `kit new`, without earlier checkpoints and runs."""
        folder = self.projects.get(model)
        if folder is None:
            folder = self.projects[model] = self.scratch / f"project-{model}"
            self._render(model, folder)
        for results in ("checkpoints", "runs"):
            shutil.rmtree(folder / results, ignore_errors=True)
        return folder

    def _render(self, model: str, folder: Path) -> None:
        command = kit("new", str(folder), "--model", model, "--dataset", "cifar10")
        # The kit of this checkout, whichever one is installed.
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"kit new --model {model} failed: {done.stderr.strip()[-200:]}")
        if not self.published:
            with (folder / "data" / "sources.py").open("a") as file:
                file.write(ANY_CHECKSUM)

    def environment(self) -> dict[str, str]:
        """Variables of every run: all of them compute on the CPU."""
        return {**os.environ, "KIT_DATA": str(self.data), "CUDA_VISIBLE_DEVICES": ""}

    def launch(self, side: str, model: str, epochs: int) -> Launch:
        """A run of one side, in a folder without earlier results."""
        project, title = self.project(model), f"{side}, {model}"
        if side == SCAFFOLD:
            command = [sys.executable, "train.py", "--set", *settings(model, epochs)]
            return Launch(title, command, project, self.environment(), "runs/*/metrics.jsonl")
        folder = self.scratch / "peer"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        python = self.lightning_python if side == LIGHTNING else sys.executable
        command = [str(python), str(HERE / PEERS[side]), "--project", str(project), "--data", str(self.data)]
        command += ["--model", model, "--epochs", str(epochs), "--log", "epochs.jsonl"]
        return Launch(title, command, folder, self.environment(), "epochs.jsonl")


def settings(model: str, epochs: int) -> list[str]:
    """The scaffold's settings that are not its defaults, as `--set` takes them."""
    return [f"epochs={epochs}", *SETTINGS.get(model, [])]


def run(launch: Launch) -> Usage:
    """Train to the end.

    Raises:
        BenchError: the process failed.
    """
    with launch.errors.open("w") as errors:
        try:
            return usage_of(launch.command, cwd=launch.folder, env=launch.environment, stderr=errors)
        except subprocess.CalledProcessError as error:
            raise BenchError(f"{launch.title} ended with code {error.returncode}: {launch.last_words()}") from None


def epoch_seconds(launch: Launch) -> list[float]:
    """Wall seconds of each epoch after the first: from the end of one validation to the end of the next.

    That includes the checkpoint of the epoch before. The `seconds` that train.py notes itself leave it out.
    """
    return [after["time"] - before["time"] for before, after in pairwise(launch.epochs())]


def measure_overhead(arena: Arena, model: str, epochs: int) -> dict[str, Any]:
    """Seconds of training, and of what is written meanwhile by part; see overhead.py.

    Raises:
        BenchError: the process failed.
    """
    result = arena.scratch / "overhead.json"
    script = [sys.executable, str(HERE / "overhead.py"), str(result), "--set", *settings(model, epochs)]
    run(Launch(f"overhead, {model}", script, arena.project(model), arena.environment(), "runs/*/metrics.jsonl"))
    return json.loads(result.read_text())


PROBE = """
import json, platform, torch, torchvision
from importlib.metadata import version
versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
if %r:
    import lightning
    versions["lightning"] = lightning.__version__
print(json.dumps({**versions, "threads": torch.get_num_threads()}))
"""


@cache
def versions_of(python: str, lightning: bool = False) -> dict[str, Any]:
    """Versions of an interpreter's packages, and torch's threads.

    Raises:
        BenchError: there is no such interpreter, or it lacks a package.
    """
    try:
        done = subprocess.run([python, "-c", PROBE % lightning], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchError(f"{python} cannot be started: {error.strerror}; name a Python interpreter") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        needed = "torch, torchvision and lightning" if lightning else "torch and torchvision"
        raise BenchError(f"{python} cannot be used ({reason}); it needs {needed}")
    return json.loads(done.stdout.splitlines()[-1])
