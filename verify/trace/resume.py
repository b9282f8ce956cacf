"""Starts a script again after it was stopped, to see whether it goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def try_resume(
    ended: Any, command: list[str], folder: Path, scratch: Path, cut: Any, fake_cuda: bool, hidden: frozenset[str]
) -> list[dict[str, Any]]:
    """The events of a run that was stopped after a few epochs and started again."""
    return []
