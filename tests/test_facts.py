"""`kit facts`: what a command starts from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.facts import facts, newest_run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module): pass\nclass Head(torch.nn.Sequential): pass\nclass Other: pass\n"
    )
    (tmp_path / "train.py").write_text("if __name__ == '__main__':\n    loss.backward()\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "config.yaml").write_text("epochs: 3\nmodel: {name: net, width: 8}\n")
    (tmp_path / "env" / "lib").mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "env" / "lib" / "theirs.py").write_text("from torch import nn\nclass Theirs(nn.Module): pass\n")
    return tmp_path


def write_run(project: Path, name: str, status: dict | str, age: float = 0) -> None:
    path = project / "runs" / name / "status.json"
    path.parent.mkdir(parents=True)
    path.write_text(status if isinstance(status, str) else json.dumps(status))
    os.utime(path, (path.stat().st_mtime - age,) * 2)


def test_models_scripts_and_settings_are_named(project: Path) -> None:
    found = dict(facts(project))
    assert found["models"] == "models/net.py: Net Head"
    assert found["training"] == "train.py"
    assert found["config"] == "epochs=3, model={name: net, width: 8}"
    assert found["verify.yaml"] == "no such file"
    assert found["git"] == "no commit, or no repository"
    assert found["run"] == "none"
    assert found["python"].startswith("Python 3.")


def test_newest_run_with_its_numbers(project: Path) -> None:
    write_run(project, "old", {"state": "done"}, age=1000)
    metrics = {"val_accuracy": 0.91234, "val_loss": None}
    write_run(project, "new", {"state": "running", "pid": os.getpid(), "epoch": 2, "epochs": 5, "metrics": metrics})
    assert newest_run(project).startswith("runs/new: running; epoch 2 of 5; val_accuracy 0.9123; ")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"state": "running", "pid": 2**30}, "said to be running, but its process is gone"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        ({"state": "done", "metrics": [1]}, "runs/new: done; epoch None of None; "),
    ],
)
def test_a_run_that_is_dead_or_damaged_is_said(status: dict | str, said: str, project: Path) -> None:
    write_run(project, "new", status)
    assert said in newest_run(project)


def test_broken_configuration_is_a_line_and_no_error(project: Path) -> None:
    (project / "config.yaml").write_text("a: [1\n")
    (project / "verify.yaml").write_text("- 1\n")
    found = dict(facts(project))
    assert found["config"].startswith("cannot be read: ")
    assert found["verify.yaml"] == "holds no keys"


def test_changed_files_of_git_are_named(project: Path) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    for arguments in (["init", "-q", "-b", "work"], ["add", "train.py"], ["commit", "-qm", "x"]):
        subprocess.run(["git", *identity, *arguments], cwd=project, check=True)
    (project / "train.py").write_text("changed = 1\n")
    assert dict(facts(project))["git"].startswith("work at ")
    assert "changed: train.py, " in dict(facts(project))["git"]


def test_command_imports_no_torch_and_prints_short_lines(project: Path) -> None:
    (project / "config.yaml").write_text("\n".join(f"key{number}: value" for number in range(1000)))
    code = (
        "import sys; from kit.cli import main; sys.argv = ['kit', 'facts']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout.splitlines()) < 40
    assert max(map(len, run.stdout.splitlines())) < 1000


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kit", "facts", str(tmp_path / "nowhere")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
