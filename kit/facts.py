"""What a command of Claude Code starts from: the state of a project in at most 40 lines, in well under a second.

Nothing here imports torch or runs code of the project. What cannot be read is said in its line and stops nothing.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST = 900  # characters of a fact
MOST_FILES, LARGEST_FILE = 400, 1 << 20
SHOWN = 8
SKIPPED = {"node_modules", "site-packages", "__pycache__", "build", "dist", "runs", "checkpoints", "wandb"}
VERSIONS = """
import sys
from importlib.metadata import version, PackageNotFoundError
found = ["Python " + sys.version.split()[0]]
for name in ("torch", "torchvision"):
    try: found.append(name + " " + version(name))
    except PackageNotFoundError: found.append("no " + name)
print(", ".join(found))
"""
TRAINS = {"backward", "fit"}


def facts(folder: Path) -> Iterator[tuple[str, str]]:
    """Label and text of each fact about the project in `folder`."""
    sources = list(python_files(folder))
    trees = {path: tree for path in sources if (tree := _parsed(path)) is not None}
    yield "project", str(folder.resolve())
    yield "git", _git(folder)
    yield "python", _output(["python", "-c", VERSIONS], folder) or "no program `python` on the path"
    yield "machine", _machine(folder)
    yield "config", _config(folder / "config.yaml")
    yield "verify.yaml", _config(folder / "verify.yaml")
    yield "models", shown(_models(trees, folder)) or "no nn.Module in the Python files"
    yield "training", shown(_training_scripts(trees, folder)) or "no script that trains found"
    yield "tests", shown(str(p.relative_to(folder)) for p in sources if p.name.startswith("test_")) or "none"
    yield "data", _listing(folder / "data" / "raw") or _listing(folder / "data") or "no data set in data/"
    yield "checkpoints", _listing(folder / "checkpoints") or "none"
    yield "run", newest_run(folder)


def report(folder: Path) -> str:
    """The facts as text, a line each; a long one is cut."""
    lines = ((label, " ".join(text.split())) for label, text in facts(folder))
    return "\n".join(f"{label:<12} {textwrap.shorten(text, LONGEST, placeholder=' ...')}" for label, text in lines)


def shown(items: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    found = list(items)
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def python_files(folder: Path) -> Iterator[Path]:
    """The project's own Python files, by name; neither environments nor what runs leave behind."""
    count = 0
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and f not in SKIPPED and not _is_environment(here / f)
        )
        for name in sorted(names):
            if name.endswith(".py"):
                count += 1
                if count > MOST_FILES:
                    return
                yield here / name


def newest_run(folder: Path) -> str:
    """State of the run whose `status.json` was written last."""
    found = [(path.stat().st_mtime, path) for path in folder.glob("runs/**/status.json")]
    if not found:
        return "none"
    written, path = max(found)
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        state = status["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path.relative_to(folder)} cannot be read: {error}"
    if state == "running" and not _is_alive(status.get("pid")):
        state = "said to be running, but its process is gone"
    metrics = status["metrics"] if isinstance(status.get("metrics"), dict) else {}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
    epochs = f"epoch {status.get('epoch')} of {status.get('epochs')}"
    parts = [f"{path.parent.relative_to(folder)}: {state}", epochs, numbers, status.get("message", ""), _age(written)]
    return "; ".join(str(part) for part in parts if part)


def _git(folder: Path) -> str:
    branch = _output(["git", "rev-parse", "--abbrev-ref", "HEAD"], folder)
    commit = _output(["git", "rev-parse", "--short", "HEAD"], folder)
    if not commit:
        return "no commit, or no repository"
    changed = [line[3:] for line in _output(["git", "status", "--short"], folder, strip=False).splitlines()]
    return f"{branch} at {commit}; " + (f"changed: {shown(changed)}" if changed else "nothing changed")


def _machine(folder: Path) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    query = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader"]
    gpus = _output(query, folder).splitlines() if shutil.which("nvidia-smi") else []
    free = shutil.disk_usage(folder).free >> 30
    return f"{cores} cores, {f'GPU: {shown(gpus)}' if gpus else 'no GPU'}, {free} GiB of disk free"


def _output(command: list[str], folder: Path, *, strip: bool = True) -> str:
    """What a program prints; nothing if it fails or is not there."""
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return (run.stdout.strip() if strip else run.stdout) if run.returncode == 0 else ""


def _config(path: Path) -> str:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "no such file"
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return f"cannot be read: {error}"
    if not isinstance(values, dict):
        return "holds no keys"
    return ", ".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) + "}"
    return str(value)


def _parsed(path: Path) -> ast.Module | None:
    with suppress(OSError, SyntaxError, ValueError, RecursionError):
        if path.stat().st_size <= LARGEST_FILE:
            return ast.parse(path.read_bytes())
    return None


def _models(trees: dict[Path, ast.Module], folder: Path) -> Iterator[str]:
    for path, tree in trees.items():
        names = [
            node.name
            for node in tree.body
            if isinstance(node, ast.ClassDef)
            and any(_last_name(base) in ("Module", "Sequential") for base in node.bases)
        ]
        if names and not path.name.startswith("test_"):
            yield f"{path.relative_to(folder)}: {' '.join(names)}"


def _training_scripts(trees: dict[Path, ast.Module], folder: Path) -> Iterator[str]:
    """Files at the top that call `backward` or `fit`, or whose names say that they train."""
    for path, tree in trees.items():
        calls = {_last_name(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        is_script = any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree.body)
        if not path.name.startswith("test_") and is_script and (calls & TRAINS or path.stem.startswith("train")):
            yield str(path.relative_to(folder))


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _listing(folder: Path) -> str:
    """Names of what is in a folder, code left out, with size and age of files."""
    try:
        entries = sorted(
            entry for entry in folder.iterdir() if not entry.name.startswith((".", "__")) and entry.suffix != ".py"
        )
    except OSError:
        return ""
    return shown(f"{entry.name}/" if entry.is_dir() else _described(entry) for entry in entries)


def _described(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError:
        return file.name
    return f"{file.name} ({stat.st_size / 2**20:.1f} MiB, {_age(stat.st_mtime)})"


def _age(written: float) -> str:
    seconds = max(time.time() - written, 0)
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_environment(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists() or (folder / "conda-meta").is_dir()
