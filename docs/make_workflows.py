"""Run the commands shown in docs/workflows/*.md and put their real output below them.

python docs/make_workflows.py [PAGE ...]

In a block that starts with ```console every line `$ COMMAND` is run, in order, in a project that `kit new` makes with
the options in the page's first line, `<!-- kit new: OPTIONS -->`, or in an empty folder; what stood below it is
replaced by what it prints now, and by its exit code if that is not 0. A block that starts with ```python FILE is that
file. A page takes minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "workflows"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
FILE = re.compile(r"```python (\S+)\n(.*?)```", re.DOTALL)
OPTIONS = re.compile(r"<!-- kit new: (.*?) -->")
SECONDS = 900


def environment() -> dict[str, str]:
    """One in which `kit` and `python` are this interpreter's, and lines are as wide as a page."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "COLUMNS": "110", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}


def output_of(command: str, folder: Path) -> str:
    """The command and what it prints."""
    run = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    code = [] if run.returncode == 0 else [f"(exit code {run.returncode})"]
    said = run.stdout.replace(str(folder), ".").replace(f"{ROOT}{os.sep}", "")
    lines = [line.rstrip() for line in said.splitlines()]
    return "\n".join([f"$ {command}", *lines, *code]) + "\n"


def renewed(text: str, folder: Path) -> str:
    """A page with the output of today."""

    def rerun(block: re.Match[str]) -> str:
        commands = re.findall(r"^\$ (.*)$", block[1], re.MULTILINE)
        return "```console\n" + "".join(output_of(command, folder) for command in commands) + "```"

    return BLOCK.sub(rerun, text)


def main() -> int:
    """Renew the pages; the exit code."""
    pages = [Path(name) for name in sys.argv[1:]] or sorted(PAGES.glob("*.md"))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch).resolve() / "myproj"
            options = OPTIONS.search(text)
            if options:
                new = ["kit", "new", str(folder), *options[1].split()]
                subprocess.run(new, check=True, env=environment(), stdout=subprocess.DEVNULL)
            else:
                folder.mkdir()
            for name, code in FILE.findall(text):
                (folder / name).write_text(code, encoding="utf-8")
            page.write_text(renewed(text, folder), encoding="utf-8")
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
