"""Every ablation of a scaffolded project is a model that `kit verify` has nothing to say about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kit.scaffold import new_project

KEYS = ("variant", "patch_size", "positions", "image_size")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_every_ablation_verifies(tmp_path: Path, dataset: str) -> None:
    project = new_project(tmp_path / "project", model="vit", dataset=dataset)
    base = yaml.safe_load((project / "config.yaml").read_text())
    ablations = sorted(project.glob("ablations/*.yaml"))
    assert len(ablations) == 4
    for file in ablations:
        config = base | yaml.safe_load(file.read_text())
        options = {"name": "vit", "num_classes": 10, **{key: config[key] for key in KEYS}}
        kwargs = ",".join(f"{key}={value}" for key, value in options.items())
        command = [sys.executable, "-m", "kit", "verify", "--model", "models/model.py:build_model", "--kwargs", kwargs]
        command += ["--input-size", "3,32,32", "--num-classes", "10", "--format", "json"]
        run = subprocess.run(command, cwd=project, capture_output=True, text=True)
        problems = [c for c in json.loads(run.stdout)["checks"] if c["status"] not in ("pass", "skip", "note")]
        assert (run.returncode, problems) == (0, []), file.name
