"""Start train.py so that it outlives the shell and the session, and say where to follow it. Used by /train.

    python .claude/start_training.py [options of train.py]

Returns as soon as the run has written its first status (exit code 0), or with the exit code of train.py and the last
line that it printed when it ended before. Everything it prints goes to runs/console.log.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
CONSOLE = Path("runs/console.log")
PATIENCE = 90.0  # seconds; a download before the first status may take longer


def main() -> int:
    """Start, wait for a sign of life, report; the exit code."""
    os.chdir(PROJECT)  # the session's shell may be anywhere
    for folder, status in running():
        print(f"not started: {folder} is running already, pid {status['pid']}; two runs would share checkpoints/")
        return 2
    CONSOLE.parent.mkdir(exist_ok=True)
    with CONSOLE.open("a") as console:
        # A session of its own: no hang-up, Ctrl-C or time limit of the shell that called this reaches it.
        process = subprocess.Popen(
            [sys.executable, "-u", "train.py", *sys.argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            print(f"train.py ended with exit code {process.returncode}: {last_line()}")
            return process.returncode
        for folder, status in running():
            if status["pid"] == process.pid:
                print(f"running: pid {process.pid}, state in {folder / 'status.json'}, output in {CONSOLE}")
                return 0
        time.sleep(0.2)
    print(f"started: pid {process.pid}, no status yet; {CONSOLE} ends with: {last_line()}")
    return 0


def running() -> list[tuple[Path, dict]]:
    """The folder and status of each run whose process is alive."""
    found = []
    for path in Path("runs").glob("*/status.json"):
        try:
            status = json.loads(path.read_text())
        except ValueError:
            continue  # left empty by a power cut
        if status["state"] == "running" and is_alive(status["pid"]):
            found.append((path.parent, status))
    return found


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number."""
    if os.name == "nt":
        return True  # there, os.kill would end it instead of asking
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is somebody else's
    return True


def last_line() -> str:
    """What train.py said last."""
    lines = CONSOLE.read_text().split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(nothing)")


if __name__ == "__main__":
    sys.exit(main())
