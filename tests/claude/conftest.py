"""The client that the set-up installed, and projects to start it in."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.claude.client import Client

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ROOT / "templates" / "pytorch_project" / "template" / ".claude" / "commands"


@pytest.fixture(scope="session")
def binary() -> Path:
    """The real client; `make test` installs it beside the environment that runs the tests."""
    folder = Path(os.environ.get("CLAUDE_CLIENT") or Path(sys.prefix) / "claude").absolute()
    path = folder / "node_modules" / ".bin" / "claude"
    if not path.exists():
        pytest.fail(f"{path} is not there; `make client` installs it")
    return path


@pytest.fixture
def client(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """The client in a home of its own."""
    return Client(binary, tmp_path_factory.mktemp("home"))


@pytest.fixture
def fake_kit(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a program called `kit` first on the path, a shell script of the given text."""

    def install(script: str) -> None:
        folder = tmp_path_factory.mktemp("bin")
        (folder / "kit").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "kit").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with every command and nothing else."""
    folder = tmp_path / "project"
    shutil.copytree(COMMANDS, folder / ".claude" / "commands")
    return folder
