"""What the benchmarks share: CPU seconds of whole processes, in pairs, and their ratio."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def cpu_seconds(command: Sequence[str], cwd: str | None = None) -> float:
    """User and system time of a command and everything that it starts, in seconds.

    Raises:
        subprocess.CalledProcessError: it ended with another code than 0.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@dataclass(frozen=True)
class Usage:
    """What a command and the processes that it waits for have used.

    Args:
        megabytes: the largest resident memory of one of them.
        cpu_seconds: user and system time of all of them.
    """

    megabytes: float
    cpu_seconds: float


def usage_of(command: Sequence[str], **options: Any) -> Usage:
    """Run a command; `options` are those of `subprocess.Popen`, such as `cwd`.

    Raises:
        subprocess.CalledProcessError: it ended with another code than 0.
    """
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.kill()  # whoever ends a benchmark ends what it started
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return Usage(usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)


def peak_megabytes(command: Sequence[str]) -> float:
    """The largest resident memory of a command, or of the largest process that it starts and waits for."""
    return usage_of(command).megabytes


def compare_memory(name: str, ours: Sequence[str], peer: Sequence[str], *, target: float) -> bool:
    """Print the peak memory of both commands, medians of three runs, and whether their ratio is at most `target`."""
    mine, theirs = (statistics.median(peak_megabytes(command) for _ in range(3)) for command in (ours, peer))
    held = mine <= target * theirs
    verdict = "holds" if held else "MISSED"
    print(f"{name}: {mine:.0f} against {theirs:.0f} MB, ratio {mine / theirs:.2f} (target {target:g}: {verdict})")
    return held


def compare(name: str, ours: Sequence[str], peer: Sequence[str], *, repeats: int, target: float) -> bool:
    """Run both commands in turns and print the medians and the median of the ratios.

    Returns:
        Whether the median ratio is at most `target`.
    """
    for command in (ours, peer):
        cpu_seconds(command)  # fills the file cache
    pairs = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(repeats)]
    ratio = statistics.median(a / b for a, b in pairs)
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    verdict = "holds" if ratio <= target else "MISSED"
    print(f"{name}: {mine:.3f} against {theirs:.3f} CPU-seconds, ratio {ratio:.2f} (target {target:g}: {verdict})")
    return ratio <= target


def repeats_from_arguments(default: int) -> int:
    """`--quick` runs three pairs."""
    return 3 if "--quick" in sys.argv else default


def kit(*arguments: str) -> list[str]:
    """The `kit` command of this environment."""
    return [os.path.join(os.path.dirname(sys.executable), "kit"), *arguments]  # noqa: PTH118, PTH120
