"""Run the zoo through `kit watch`: what is caught, what is missed, and what is cried out about healthy programs.

python -m tests.zoo.runner                       everything; writes docs/zoo.md
python -m tests.zoo.runner --only argparse       cases whose name or program contains a word; writes nothing
python -m tests.zoo.runner --keep FOLDER         keep each report as FOLDER/<name>.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.zoo import forked
from tests.zoo.bugs import BUGS
from tests.zoo.model import Program, load_program, programs
from tests.zoo.variations import HEALTHY
from verify.trace import launch
from verify.watch import judge

DOCS = Path(__file__).parents[2] / "docs" / "zoo.md"
PROBLEMS = ("fail", "warn", "error")


@dataclass
class Case:
    """A program, as it is or patched, and what `kit watch` said of it."""

    name: str
    program: str
    patch: Any
    codes: frozenset[str] = frozenset()
    source: str = ""
    checks: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int = -1
    seconds: float = 0.0
    stderr: str = ""

    @property
    def is_bug(self) -> bool:
        """Whether something is planted in it."""
        return bool(self.codes)

    @property
    def problems(self) -> list[dict[str, Any]]:
        """What was reported."""
        return [check for check in self.checks if check["status"] in PROBLEMS]

    @property
    def caught(self) -> bool:
        """Whether one of the right rules reported it."""
        return any(check["code"] in self.codes and check["status"] != "error" for check in self.problems)

    @property
    def good(self) -> bool:
        """Caught, or healthy and silent."""
        return self.caught if self.is_bug else not self.problems and self.exit_code == 0


def cases() -> list[Case]:
    """Every case whose packages are installed."""
    found = [Case(p.name, p.name, p) for p in programs()]
    found += [Case(v.name, v.program, v) for v in HEALTHY]
    found += [Case(b.name, b.program, b, frozenset(b.codes), b.source) for b in BUGS]
    return [case for case in found if _installed(load_program(case.program).requires)]


def _installed(packages: tuple[str, ...]) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in packages)


SECOND_START = {"CKP014", "CKP015", "REP021"}


def watch(case: Case, keep: Path | None = None, real: bool = False) -> Case:
    """Run `kit watch` on a case, in a folder of its own; `real`: by the command line in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        folder = Path(scratch) / case.program
        case.patch.apply(folder)
        file = (keep or Path(scratch)) / f"{case.name}.jsonl"
        command = list(load_program(case.program).command)
        again = isinstance(case.patch, Program) or bool(case.codes & SECOND_START)
        started = time.monotonic()
        text = _by_command_line(command, folder, file) if real else _forked(command, folder, file, again)
    case.seconds = time.monotonic() - started
    try:
        answer = json.loads(text)
        case.checks, case.exit_code = answer["checks"], answer["exit_code"]
    except (ValueError, KeyError):
        case.stderr = text
    if keep:
        (keep / f"{case.name}.json").write_text(text)
    return case


def _by_command_line(command: list[str], folder: Path, file: Path) -> str:
    kit = [sys.executable, "-m", "kit", "watch", "--format", "json", "--record", str(file), "--", *command]
    run = subprocess.run(kit, cwd=folder, capture_output=True, text=True, check=False)
    try:
        return json.dumps({**json.loads(run.stdout), "exit_code": run.returncode})
    except ValueError:
        return run.stdout + run.stderr


def _forked(command: list[str], folder: Path, file: Path, again: bool) -> str:
    """The report, made in a fork of this process that has torch already."""
    out = file.with_suffix(".answer")
    child = os.fork()
    if child == 0:
        try:
            cut = replace(launch.DEFAULT, resume=again)
            record = launch.watch(command, folder=folder, cut=cut)
            record.save(file)
            report = judge(record)
            out.write_text(json.dumps({**report.to_json(), "exit_code": report.exit_code}))
        except BaseException:
            out.write_text(traceback.format_exc())
        os._exit(0)
    os.waitpid(child, 0)
    text = out.read_text() if out.exists() else "the process died"
    out.unlink(missing_ok=True)
    return text


def _line(case: Case) -> str:
    word = ("caught" if case.caught else "MISSED") if case.is_bug else ("silent" if case.good else "ALARM ")
    codes = ", ".join(dict.fromkeys(f"{c['code']}({c['status'][0]})" for c in case.problems))
    wanted = f"  wanted {', '.join(sorted(case.codes))}" if case.is_bug and not case.caught else ""
    return (
        f"{word}  {case.seconds:5.1f} s  {case.program}/{case.name}: {codes or '-'}{wanted} {case.stderr.strip()[:200]}"
    )


def _said(case: Case) -> str:
    return ", ".join(sorted({check["code"] for check in case.problems})) or "nothing"


def table(done: list[Case]) -> str:
    """The page for the documentation."""
    bugs, healthy = [c for c in done if c.is_bug], [c for c in done if not c.is_bug]
    caught = [c for c in bugs if c.caught]
    alarms = [c for c in healthy if not c.good]
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for case in caught:
        for code in {check["code"] for check in case.problems} & case.codes:
            rows[code][0] += 1
    for case in healthy:
        for code in {check["code"] for check in case.problems}:
            rows[code][1] += 1
    lines = [
        "# The zoo",
        "",
        "Written by `make zoo`: bugs planted in healthy programs of different styles, one at a time, and healthy",
        "programs that look suspicious, run through what `kit watch` runs. A bug is caught when one of the rules that",
        "are named for it beforehand reports it; a healthy program must not cause a single warning. The programs share",
        "one process that has imported torch, and only some are started a second time; `--real` does neither.",
        "",
        f"- **{len(caught)} of {len(bugs)} planted bugs caught** ({len(caught) / max(1, len(bugs)):.1%})",
        f"- **{len(alarms)} false alarms** on {len(healthy)} healthy programs",
        f"- programs: {', '.join(sorted({c.program for c in done}))}",
        "",
        "## Missed",
        "",
        *([f"- {c.program}: {c.name} ({c.source})" for c in bugs if not c.caught] or ["None."]),
        "",
        "## False alarms",
        "",
        *([f"- {c.program}: {c.name}: {', '.join(p['code'] for p in c.problems)}" for c in alarms] or ["None."]),
        "",
        "## By rule",
        "",
        "| rule | planted bugs it caught | false alarms |",
        "|---|---|---|",
        *[f"| {code} | {found} | {false} |" for code, (found, false) in sorted(rows.items())],
        "",
        "## Every case",
        "",
        "| program | case | in the catalogue | reported |",
        "|---|---|---|---|",
        *[f"| {c.program} | {c.name} | {c.source or 'healthy'} | {_said(c)} |" for c in done],
        "",
    ]
    return "\n".join(lines)


def _all(chosen: list[Case], keep: Path | None, real: bool, jobs: int) -> list[Case]:
    """Every case, `jobs` at a time, in the given order; a line is printed as soon as one is done."""
    context = multiprocessing.get_context("fork")
    done: dict[str, Case] = {}
    with context.Pool(jobs, maxtasksperchild=1) as pool:
        for case in pool.imap_unordered(_one, [(c, keep, real) for c in chosen], chunksize=1):
            done[case.name] = case
            print(_line(case), flush=True)
    return [done[c.name] for c in chosen]


def _one(arguments: tuple[Case, Path | None, bool]) -> Case:
    return watch(*arguments)


def main() -> int:
    """Run the cases; 0 when all are as they should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--healthy", action="store_true", help="healthy ones alone")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--real", action="store_true", help="by the command line")
    parser.add_argument("--sample", type=int, default=1, help="every n-th case")
    arguments = parser.parse_args()
    chosen = [c for c in cases() if not arguments.only or any(w in f"{c.program}/{c.name}" for w in arguments.only)]
    chosen = [c for c in chosen if not (arguments.healthy and c.is_bug)][:: arguments.sample]
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    if not arguments.real:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        forked.install()
    chosen = _all(chosen, arguments.keep, arguments.real, arguments.jobs)
    bugs = [c for c in chosen if c.is_bug]
    caught, alarms = sum(c.caught for c in bugs), sum(not c.is_bug and not c.good for c in chosen)
    print(f"{caught} of {len(bugs)} planted bugs caught, {alarms} of {len(chosen) - len(bugs)} healthy ones not silent")
    if not arguments.only and not arguments.healthy and arguments.sample == 1:
        DOCS.write_text(table(chosen), encoding="utf-8")
    return int(caught < 0.95 * len(bugs) or alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
