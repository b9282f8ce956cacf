"""Writes docs/rivals.md."""

from __future__ import annotations

from types import ModuleType
from typing import Any

HEAD = """# Beside other tools

Written by `python bench/rivals/run.py{options}`. The same planted bugs and healthy look-alikes through the kit and the
tools that come closest to it, each set up as its documentation says, in an environment of its own.

- A bug counts as **caught** when the tool reports a failure, a warning or a crash that it does not report on the
  healthy counterpart. Whether it names the cause is not asked. What it marks as information is not counted.
- A **healthy case with a warning** is a right model or program about which the tool reports a failure or a warning.
- CPU-seconds are those of one case, without importing torch, with one thread, medians. Take the ratio: all tools ran
  on the same machine.
- The lines are what a user of the tool has to write for one model or program, blank ones left out. For the kit it is a
  command line.
- The cases are the kit's own test suite: the kit was built until it caught these bugs, and the others were not. So the
  tables show what the others leave open, not how often the kit is right about code that it has never seen.
"""


def page(
    tools: list[ModuleType],
    cases: dict[str, list[Any]],
    every: int,
    tables: dict[str, list[str]],
    details: dict[str, list[str]],
    about_traincheck: str,
) -> str:
    """The whole page, in Markdown."""
    options = f" --every {every}" if every > 1 else ""
    number = {kind: (sum(not c.healthy for c in cs), sum(c.healthy for c in cs)) for kind, cs in cases.items()}
    chosen = " (a sample: every n-th of the suite's)" if every > 1 else ""
    out = [
        HEAD.format(options=options),
        "## What each is for",
        "",
        "| tool | version | subject |",
        "|---|---|---|",
        *[f"| {t.NAME} | {versions(t)} | {t.CLAIMS} |" for t in tools],
        "",
        "## Bugs in models",
        "",
        f"{number['model'][0]} planted models and {number['model'][1]} healthy ones{chosen}, from "
        "`tests/verify/planted.py` and `planted_dataflow.py`.",
        "",
        *tables["model"],
        "",
        "## Bugs in training programs",
        "",
        f"{number['program'][0]} bugs planted in three programs of the zoo, and {number['program'][1]} healthy "
        "programs. Only the kit and TrainCheck take a script as it is. torch-audit is put into it by a few lines. "
        "For the others the harness calls the script's functions, so they cannot see what its `main` does: that is a "
        "limit of what they set out to do, not a fault.",
        "",
        *tables["program"],
        "",
        "## TrainCheck",
        "",
        about_traincheck,
        "",
        "## Commands",
        "",
        "```",
        *[f"{t.NAME}: {command}" for t in tools for command in commands(t)],
        "```",
        "",
        "The harnesses stand in `bench/rivals/with_*.py`.",
        "",
        "## Every model",
        "",
        *details["model"],
        "",
        "## Every program",
        "",
        *details["program"],
        "",
    ]
    return "\n".join(out)


def versions(tool: ModuleType) -> str:
    """Of the package itself, without what it needs."""
    return tool.PACKAGES[0].partition("==")[2] if tool.PACKAGES else "this checkout"


def commands(tool: ModuleType) -> list[str]:
    """What its user types."""
    return list(tool.COMMANDS)
