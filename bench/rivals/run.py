"""The same planted bugs and healthy look-alikes through the kit and the tools that come closest to it.

python bench/rivals/run.py                      everything; prints the tables and writes docs/rivals.md
python bench/rivals/run.py --every 3            every third model
python bench/rivals/run.py --only torchtest2    one tool; writes nothing
python bench/rivals/run.py --again              forget what earlier runs found
python bench/rivals/run.py --report             run nothing, write about what every tool has seen so far

The tools are installed into a folder of their own (`--work`, by default under the temporary folder); nothing is added
to the kit's environment. Results are kept there, so that a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import traincheck_  # noqa: E402
import with_kit  # noqa: E402
import with_preflight  # noqa: E402
import with_pytest_torch  # noqa: E402
import with_torch_audit  # noqa: E402
import with_torchtest2  # noqa: E402
from cases import Case, model_file, models, programs  # noqa: E402
from harness import lines  # noqa: E402
from report import page  # noqa: E402

TOOLS: list[ModuleType] = [with_kit, with_torchtest2, with_pytest_torch, with_torch_audit, with_preflight]
LIMIT_SECONDS = {"model": 120, "program": 300}
# Of every rule of torch-audit's, the ones that are about speed on a GPU and not about a mistake.
HARDWARE_HINTS = {"TA200", "TA201", "TA202"}


def install(work: Path) -> Path:
    """Make an environment with the rivals that also sees the packages of this one; its interpreter."""
    python = work / "env" / "bin" / "python"
    packages = [package for tool in [*TOOLS, traincheck_] for package in tool.PACKAGES]
    done = work / "installed.txt"
    if done.exists() and done.read_text().split() == packages:
        return python
    venv.create(work / "env", clear=True, with_pip=False)
    site = work / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(site), *packages]
    subprocess.run(pip, check=True)
    own = next((work / "env").glob("lib/python*/site-packages"))
    (own / "rivals.pth").write_text(f"{site}\n{sysconfig.get_path('purelib')}\n")
    done.write_text("\n".join(packages))
    return python


def carry_out(python: Path, work: Path, wanted: Sequence[tuple[ModuleType, str, Case]]) -> None:
    """Run every case that has no result yet, all by one process that has torch."""
    jobs = []
    for tool, kind, case in wanted:
        if case.name not in read(results_of(work, tool, kind)):
            jobs.append(job(work, tool, kind, case))
    print(f"{len(jobs)} of {len(wanted)} runs to do", flush=True)
    if jobs:
        file = work / "jobs.json"
        file.write_text(json.dumps(jobs))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
        subprocess.run([python, HERE / "forker.py", file], check=True, env=environment)


def results_of(work: Path, tool: ModuleType, kind: str) -> Path:
    """Where the results of a tool are kept."""
    return work / f"{tool.NAME.replace(' ', '-')}-{kind}.jsonl"


def read(kept: Path) -> dict[str, Any]:
    """Results of earlier runs."""
    if not kept.exists():
        return {}
    return {made["case"]: made for made in map(json.loads, kept.read_text().splitlines())}


def job(work: Path, tool: ModuleType, kind: str, case: Case) -> dict[str, Any]:
    """Lay out a case in a folder of its own; what forker.py needs to run it."""
    folder = work / "cases" / tool.NAME.replace(" ", "-") / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if kind == "model":
        (folder / "net.py").write_text(model_file(case))
    else:
        case.patch.apply(folder)
    argv = getattr(tool, f"{kind}_job")(case, folder)
    forks = tool is with_kit and kind == "model"
    limit = LIMIT_SECONDS[kind]
    return {
        "case": case.name,
        "results": str(results_of(work, tool, kind)),
        "folder": str(folder),
        "argv": argv,
        "path": [str(ROOT)],
        "limit": limit,
        "forks_kit": forks,
    }


def judge(tool: ModuleType, cases: Sequence[Case], results: dict[str, Any], drop: frozenset[str]) -> dict[str, Any]:
    """What of the cases the tool caught, and where it cried out for nothing."""
    said = {c.name: tool.findings(results[c.name]["output"], results[c.name]["exit_code"]) - drop for c in cases}
    bugs, healthy = [c for c in cases if not c.healthy], [c for c in cases if c.healthy]
    caught = [c for c in bugs if said[c.name] - said[c.counterpart]]
    return {
        "said": said,
        "bugs": bugs,
        "healthy": healthy,
        "caught": {c.name for c in caught},
        "alarms": [c for c in healthy if said[c.name]],
        "seconds": statistics.median(results[c.name]["seconds"] for c in cases),
        "cpu": statistics.median(results[c.name]["cpu_seconds"] for c in cases),
    }


def row(name: str, made: dict[str, Any], harness: str, base: float) -> str:
    """A line of a table."""
    return (
        f"| {name} | {len(made['caught'])} of {len(made['bugs'])} | {len(made['alarms'])} of {len(made['healthy'])} "
        f"| {made['cpu']:.1f} | {made['cpu'] / base:.2f} | {harness} |"
    )


def table(kind: str, made: dict[str, dict[str, Any]]) -> list[str]:
    """The table of one kind of cases."""
    base = made["the kit"]["cpu"]
    out = [
        f"| tool | bugs caught | healthy {kind}s with a warning | CPU-seconds, median "
        "| times the kit's | lines its user writes |",
        "|---|---|---|---|---|---|",
    ]
    for name, outcome in made.items():
        tool = next(t for t in TOOLS if name.startswith(t.NAME))
        texts = [tool.MODEL] if kind == "model" else list(tool.PROGRAMS.values())
        counts = sorted({lines(text) for text in texts})
        harness = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        out.append(row(name, outcome, harness, base))
    return out


def every_case(kind: str, made: dict[str, dict[str, Any]]) -> list[str]:
    """Which tool caught what."""
    names = [tool.NAME for tool in TOOLS]
    out = [f"| {kind} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case in made["the kit"]["bugs"]:
        words = ["caught" if case.name in made[name]["caught"] else "" for name in names]
        out.append(f"| {case.name} ({case.code}) | {' | '.join(words)} |")
    for case in made["the kit"]["healthy"]:
        words = [", ".join(sorted(made[name]["said"][case.name])) for name in names]
        if any(words):
            out.append(f"| healthy: {case.name} | {' | '.join(words)} |")
    return out


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kit-rivals")
    parser.add_argument("--every", type=int, default=1, help="every n-th model")
    parser.add_argument("--only", choices=[tool.NAME for tool in TOOLS])
    parser.add_argument("--kinds", nargs="*", default=["program", "model"], choices=["model", "program"])
    parser.add_argument("--traincheck", action="store_true", help="TrainCheck too: about an hour")
    parser.add_argument("--report", action="store_true", help="run nothing, write about what every tool has seen")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.again:
        for kept in [*work.glob("*.jsonl"), *work.glob("traincheck.json")]:
            kept.unlink()
    python = work / "env/bin/python" if arguments.report else install(work)
    all_cases = {"model": thinned(models(), arguments.every), "program": programs()}
    tools = [tool for tool in TOOLS if arguments.only in (None, tool.NAME)]
    kinds = arguments.kinds
    if arguments.report:
        all_cases = {kind: seen_by_all(work, kind, cases) for kind, cases in all_cases.items()}
    else:
        carry_out(python, work, [(tool, kind, case) for kind in kinds for tool in tools for case in all_cases[kind]])
    made: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in kinds}
    for kind in kinds:
        for tool in tools:
            results = read(results_of(work, tool, kind))
            made[kind][tool.NAME] = judge(tool, all_cases[kind], results, frozenset())
            if tool is with_torch_audit:
                without = judge(tool, all_cases[kind], results, frozenset(HARDWARE_HINTS))
                made[kind][f"{tool.NAME} without its hints for the hardware"] = without
            outcome = made[kind][tool.NAME]
            print(f"{kind}s, {tool.NAME}: {len(outcome['caught'])} of {len(outcome['bugs'])} caught, ", end="")
            print(f"{len(outcome['alarms'])} of {len(outcome['healthy'])} healthy ones with a warning")
    if arguments.only or len(made) < 2:
        return 0
    found: dict[str, Any] = {}
    if arguments.traincheck:
        found = traincheck_.carry_out(python, work, all_cases["program"])
    elif (work / "traincheck.json").exists():
        found = json.loads((work / "traincheck.json").read_text())
    tables = {kind: table(kind, made[kind]) for kind in made}
    details = {kind: every_case(kind, made[kind]) for kind in made}
    about = traincheck_.report(found)
    text = page([*TOOLS, traincheck_], all_cases, arguments.every, tables, details, about)
    print(text)
    (ROOT / "docs" / "rivals.md").write_text(text, encoding="utf-8")
    return 0


def seen_by_all(work: Path, kind: str, cases: list[Case]) -> list[Case]:
    """The cases that every tool has a result of."""
    names = set.intersection(*(set(read(results_of(work, tool, kind))) for tool in TOOLS))
    return [case for case in cases if case.name in names]


def thinned(cases: list[Case], every: int) -> list[Case]:
    """Every n-th case, and the counterparts of those."""
    chosen = cases[::every]
    wanted = {case.name for case in chosen} | {case.counterpart for case in chosen}
    return [case for case in cases if case.name in wanted]


if __name__ == "__main__":
    sys.exit(main())
