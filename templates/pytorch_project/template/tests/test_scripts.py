"""The scripts as a user starts them: real processes, real signals, real digits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import DIGITS, MODEL

from engine import startup

PROJECT = Path(__file__).parents[1]
SHORT = (*DIGITS, "epochs=2", "device=cpu")
WORKERS = ("log_every=1", "loader=workers", "num_workers=2")


@pytest.fixture
def start(tmp_path):
    """Starts a script of the project in an empty folder that has its config.yaml."""
    (tmp_path / "config.yaml").write_text((PROJECT / "config.yaml").read_text())

    def popen(script, *arguments, **variables):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        environment.pop("KIT_DATA", None)
        command = [sys.executable, str(PROJECT / script), *arguments]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A suite that runs in the background of a script ignores Ctrl-C, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            start_new_session=True,
        )

    return popen


def finish(process):
    """The exit code, stdout and stderr of a process."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(process, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_train_interrupt_continue_evaluate(start, tmp_path):
    process = start("train.py", *SHORT, "log_every=1")
    wait_for(process, lambda: is_training(tmp_path))
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err.count("Traceback")) == (130, 0), err
    assert "Interrupted and saved: checkpoints/last.pt" in err

    code, out, err = finish(start("train.py", *SHORT, "log_every=1"))
    assert (code, err) == (0, "")  # no progress bar where nobody can see it
    assert f"Continuing {MODEL}-digits-" in out
    assert out.count("Epoch 2/2") == 1

    code, out, err = finish(start("evaluate.py"))
    assert (code, err) == (0, "")
    assert "Test accuracy: " in out
    assert len(list(tmp_path.glob("runs/*/evaluation/test/*.png"))) == 3


def is_training(tmp_path):
    return any(path.stat().st_size for path in tmp_path.glob("runs/*/metrics.jsonl"))


def test_the_process_group_is_terminated(start, tmp_path):
    # By `timeout`, a scheduler or a container: the workers get the signal as well.
    process = start("train.py", *SHORT, *WORKERS)
    wait_for(process, lambda: is_training(tmp_path))
    os.killpg(process.pid, signal.SIGTERM)
    code, _, err = finish(process)
    assert (code, err.count("Traceback")) == (130, 0), err
    assert "Interrupted and saved: checkpoints/last.pt" in err


def test_kill_and_start_at_once(start, tmp_path):
    process = start("train.py", *SHORT, *WORKERS)
    wait_for(process, lambda: is_training(tmp_path))
    process.kill()
    process.wait()
    code, _, err = finish(start("train.py", *SHORT, *WORKERS, "epochs=1"))  # its workers are still there
    assert (code, err) == (0, "")


@pytest.mark.parametrize("module", ["engine.startup", "torch.nn"])
def test_ctrl_c_while_starting_is_quiet(start, module):
    process = start("train.py", *SHORT, PYTHONPROFILEIMPORTTIME="1")
    while not process.stderr.readline().endswith(f" {module}\n"):  # one line a module, when it is imported
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, err.count("Traceback")) == (130, 0), err


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["--set", "epoch=3"], "error: --set epoch=3: unknown key 'epoch'; did you mean 'epochs'?"),
        ("evaluate.py", [], "error: checkpoints/best.pt does not exist; train first"),
    ],
)
def test_wrong_use(start, tmp_path, script, arguments, message):
    code, out, err = finish(start(script, *arguments))
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("running", "policy"), [("1/80", None), ("3/80", "PASSIVE"), ("?", "PASSIVE"), (None, "PASSIVE")]
)
def test_threads_spin_on_a_machine_of_their_own(monkeypatch, running, policy):
    def read(path):
        if running is None:
            raise FileNotFoundError(path)
        return f"0.20 0.18 0.12 {running} 11206"

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(Path, "read_text", read)
    startup.choose_waiting()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    startup.choose_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


ALLOCATIONS = """
import resource, sys
import engine.startup
if "keep" in sys.argv:
    engine.startup.keep_freed_memory()
import torch
for number in range(40):
    if number == 20:  # by then every gap that a small block left has been passed once
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**23).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is for the C library of Linux")
def test_freed_memory_stays():
    faults = {}
    for how in ("keep", "as it is"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", ALLOCATIONS, how]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["keep"] <= faults["as it is"]
    assert faults["keep"] < 10 * 8192  # half of the pages of the last twenty blocks
