"""What a result depends on beside the configuration: versions, machine, threads, and the state of the code."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from engine.errors import naming

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pydantic")


def describe_environment(device: torch.device | str) -> dict[str, Any]:
    """Versions, machine and git state of this process, as plain values."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "git": git_state(),
    }


def record_session(folder: Path, step: int, device: torch.device | str) -> None:
    """Add a line to sessions.jsonl: what this process is, which trains from `step` on."""
    session = {"step": step, "pid": os.getpid(), "time": round(time.time(), 3), **describe_environment(device)}
    path = folder / "sessions.jsonl"
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(session) + "\n")


def git_state() -> dict[str, Any] | None:
    """The commit, and what has been changed since (None outside of a repository, or without git)."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = (_git("status", "--porcelain", "--", ".") or "").splitlines()
    return {"commit": commit, "changed_files": changed, "diff": _git("diff", "HEAD", "--", ".") or ""}


def _git(*arguments: str) -> str | None:
    try:
        # A file that is not UTF-8 may be among the changes.
        done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
