import subprocess
from pathlib import Path

import pytest

from engine.environment import describe_environment, git_state


def git(*arguments):
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """With one commit of a file that is not UTF-8, as the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_bytes("für\n".encode("latin-1"))
    git("init")
    git("add", ".")
    git("commit", "-m", "first")


def test_state_of_the_code_is_recorded(repository):
    assert git_state()["changed_files"] == []
    Path("notes.txt").write_bytes("für später\n".encode("latin-1"))
    state = git_state()
    assert len(state["commit"]) == 40
    assert state["changed_files"] == [" M notes.txt"]
    assert "+f\ufffdr sp\ufffdter" in state["diff"]


def test_outside_of_a_repository_there_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    environment = describe_environment("cpu")
    assert environment["git"] is None
    assert environment["packages"]["torch"]
