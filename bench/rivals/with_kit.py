"""The kit: `kit verify` on a model, `kit watch` on a script, both as they are."""

from __future__ import annotations

import json
from pathlib import Path

from cases import Case

NAME = "the kit"
PACKAGES: list[str] = []
CLAIMS = "models, and scripts as they are: data, loop, optimizer, schedule, loss, evaluation, checkpoints, options."
COMMANDS = [
    "kit verify --model net.py:Net --input-size 3,16,16 --num-classes 5 --device cpu --format json",
    "kit watch --format json -- python train.py",
]
MODEL = ""
PROGRAMS = {"argparse_script": "", "functional_loop": "", "notebook_module": ""}
WATCH = "from tests.zoo import forked; forked.install(); from kit.cli import main; main()"


def model_job(case: Case, folder: Path) -> list[str]:
    """The command line."""
    size = f"3,{case.side},{case.side}"
    model = ["--model", "net.py:Net", "--input-size", size, "--num-classes", "5"]
    return ["-m", "kit", "verify", *model, "--device", "cpu", "--format", "json"]


def program_job(case: Case, folder: Path) -> list[str]:
    """The command line."""
    return ["-c", WATCH, "watch", "--format", "json", "--", "python", "train.py"]


def findings(output: str, exit_code: int) -> set[str]:
    """Codes that failed, warned or could not be checked."""
    try:
        checks = json.JSONDecoder().raw_decode(output[output.index("{") :])[0]["checks"]
    except (ValueError, KeyError):
        return {"crash"}
    return {check["code"] for check in checks if check["status"] in ("fail", "warn", "error")}
