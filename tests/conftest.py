"""Settings for every test."""

import os
import sys
from pathlib import Path

# Two workers share two cores; small networks gain nothing from threads and lose much when they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hooks, commands and the client find `kit` and `python` as in an environment that is active.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
