"""`kit --help` against `python -c "import typer"`: at most 1.5 times the CPU time."""

from __future__ import annotations

import sys

from common import compare, kit, repeats_from_arguments

if __name__ == "__main__":
    peer = [sys.executable, "-c", "import typer"]
    held = compare("kit --help", kit("--help"), peer, repeats=repeats_from_arguments(21), target=1.5)
    sys.exit(not held)
