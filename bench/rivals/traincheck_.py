"""TrainCheck: learns invariants from a trace of the healthy program, and checks a trace of the planted one.

python bench/rivals/traincheck_.py PYTHON WORK    on its own; run.py does this too and keeps what was found
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAME = "TrainCheck"
PACKAGES = [
    "traincheck==0.2.0",
    "astor==0.8.1",
    "numba==0.68.1",
    "llvmlite==0.50.0",
    "pandas==3.1.1",
    "polars==2.1.0",
    "polars-runtime-32==2.1.0",
    "orjson==3.13.0",
    "watchdog==7.1.0",
    "python-dateutil==4.0.0",
    "six==1.17.0",
]
CLAIMS = "scripts as they are: deviations of a run from what it has learned from runs that are known to be right."
COMMANDS = [
    "traincheck-collect --pyscript train.py --models-to-track model --output-dir reference",
    "traincheck-infer -f reference -o invariants.json",
    "traincheck-collect --pyscript train.py --models-to-track model --invariants invariants.json --output-dir target",
    "traincheck-check -f target -i invariants.json",
]
PROGRAM = "argparse_script"
HEALTHY = ("clip-by-value", "last-batch-of-two")
PLANTED = ("missing-zero-grad", "missing-step", "no-eval-mode", "schedule-never-stepped", "head-not-in-optimizer")
LIMIT_SECONDS = 600
# It reads every attribute of torch, and this one raises where torch was built for CUDA and there is no GPU.
WORKAROUND = 'setattr(__import__("torch").backends.cuda, "cufft_plan_cache", None)\n'


def prepare(case: Any, folder: Path, workaround: bool = True) -> None:
    """Write the program into a folder, cut to two epochs."""
    case.patch.apply(folder)
    script = folder / "train.py"
    text = script.read_text().replace('"--epochs", type=int, default=20', '"--epochs", type=int, default=2')
    script.write_text((WORKAROUND if workaround else "") + text)


def stage(python: Path, folder: Path, module: str, *arguments: str) -> dict[str, Any]:
    """One command of TrainCheck's; how it ended, in how many seconds, and its last words."""
    started = time.monotonic()
    before = os.times()
    command = [str(python), "-m", f"traincheck.{module}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=environment, check=False
        )
        code, words = run.returncode, re.sub(r"\x1b\[\d*m", "", run.stdout + run.stderr)
    except subprocess.TimeoutExpired:
        code, words = 124, ""
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    # It ends with 0 when the traced program ended with an error.
    if "The program exited with error code" in words:
        code = 1
    return {"code": code, "seconds": time.monotonic() - started, "cpu": cpu, "words": words[-6000:]}


def collect(python: Path, folder: Path, *more: str) -> dict[str, Any]:
    """Trace the program in a folder."""
    options = ["--pyscript", "train.py", "--models-to-track", "model", "--output-dir", str(folder / "trace"), *more]
    return stage(python, folder, "collect_trace", *options)


def carry_out(python: Path, work: Path, cases: list[Any]) -> dict[str, Any]:
    """The whole way, as far as it goes; kept in `work/traincheck.json`."""
    kept = work / "traincheck.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    by_name = {case.name: case for case in cases}
    reference = by_name[PROGRAM]
    home = work / "cases" / NAME

    def keep(name: str, made: dict[str, Any]) -> bool:
        found[name] = made
        kept.write_text(json.dumps(found))
        print(f"TrainCheck, {name}: exit code {made['code']}, {made['cpu']:.0f} CPU-s", flush=True)
        return made["code"] == 0

    if "as documented" not in found:
        prepare(reference, home / "plain", workaround=False)
        keep("as documented", collect(python, home / "plain"))
    if "reference" not in found:
        prepare(reference, home / "reference")
        keep("reference", collect(python, home / "reference"))
    invariants = home / "invariants.json"
    if "inference" not in found:
        keep("inference", stage(python, home, "infer_engine", "-f", "reference/trace", "-o", str(invariants)))
    if found["inference"]["code"] != 0:
        return found
    for name in (*HEALTHY, *PLANTED):
        folder = home / name
        if name not in found:
            prepare(by_name[f"{PROGRAM}.{name}"], folder)
            if keep(f"{name}: trace", collect(python, folder, "--invariants", str(invariants))):
                keep(name, stage(python, folder, "checker", "-f", "trace", "-i", str(invariants)))
    return found


def report(found: dict[str, Any]) -> str:
    """What came of it, in Markdown."""
    first, reference, inference = (found.get(name) for name in ("as documented", "reference", "inference"))
    if not (first and reference and inference):
        return "Not run: `python bench/rivals/run.py --traincheck` adds it; it takes an hour."
    lines = []
    if first["code"]:
        error = re.findall(r"^\S*?(\w+Error: .*?)\.? ?(?:Please.*)?$", first["words"], re.M)
        said = error[-1] if error else "no message"
        lines += [
            "As documented it does not start here, where torch is built for CUDA and there is no GPU: "
            f"`{said}`. It reads every attribute of torch, and one of them asks for a device. One line at the head of "
            "the script goes round that:",
            "",
            f"    {WORKAROUND.strip()}",
            "",
        ]
    lines += [f"So, for `{PROGRAM}` cut to 2 of its 20 epochs: tracing takes {reference['cpu']:.0f} CPU-seconds."]
    if inference["code"] == 124:
        lines += [
            f"Inferring invariants from that trace had not ended after {LIMIT_SECONDS} s ({inference['cpu']:.0f} "
            "CPU-seconds), where we stopped it. So we cannot say what it catches; its authors report 18 of 20 silent "
            "errors on larger programs (OSDI 2025).",
        ]
        return "\n".join(lines)
    if inference["code"]:
        last = inference["words"].strip().splitlines()[-1:]
        return "\n".join([*lines, f"Inferring invariants ended with exit code {inference['code']}: `{''.join(last)}`."])
    lines += [
        f"Inferring invariants from the trace: {inference['cpu']:.0f} CPU-seconds. What each program then violates of "
        "what was learned from the one healthy run; the healthy ones among them differ from it as other healthy "
        "programs do:",
        "",
    ]
    lines += ["| case | violated invariants | CPU-seconds |", "|---|---|---|"]
    for name in (*HEALTHY, *PLANTED):
        made, trace = found.get(name), found.get(f"{name}: trace", {"cpu": 0.0})
        word = "healthy: " if name in HEALTHY else ""
        violated = re.findall(r"(\d+) checked .*? (\d+) violated", made["words"]) if made else []
        answer = "{1} of {0}".format(*violated[-1]) if violated else "no answer"
        lines += [f"| {word}{name} | {answer} | {trace['cpu'] + (made or trace)['cpu']:.0f} |"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
    from cases import programs

    print(report(carry_out(Path(sys.argv[1]), Path(sys.argv[2]), programs())))
