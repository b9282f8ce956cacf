"""A script as an agent wrote it in an afternoon, with the silent bugs that it had: each is found, by its code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent / "seed"
KNOWN = {
    "DAT201": "both splits share one data set, whose transform was set for validation last",
    "CFG502": "optimizer, weight_decay, scheduler and T_max of config.yaml are never read",
    "CKP014": "a resumed run has neither the schedule nor the patience of the one that was interrupted",
    "CKP015": "the best checkpoint is all there is to resume from, and the epochs since are trained again",
    "EVL603": "the loss of an epoch is a mean of batch means",
    "SRC080": "a test of gradients that zeros pass",
    "SRC081": "the norm of the gradients is that of the last batch of an epoch",
}


@pytest.mark.slow
def test_the_silent_bugs_of_the_example_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(EXAMPLE, folder)
    command = [sys.executable, "-m", "kit", "watch", "--timeout", "400", "--format", "json", "--", "python", "train.py"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    checks = {c["code"]: c for c in json.loads(run.stdout)["checks"] if c["status"] in ("fail", "warn")}
    assert run.returncode == 1, run.stderr
    assert set(checks) == set(KNOWN)
    said = str(checks["CFG502"])
    assert all(key in said for key in ("optimizer", "weight_decay", "scheduler", "T_max"))
