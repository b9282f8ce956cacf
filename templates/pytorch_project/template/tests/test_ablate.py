"""The grid of ablations: what is finished is kept, what was interrupted goes on, the table says what was measured."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import DIGITS

import ablate
from engine.config import load_config
from engine.errors import run_script

PROJECT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (PROJECT / "ablations").glob("*.yaml"))
SHORT = [*DIGITS, "epochs=2", "device=cpu", "log_every=1"]


@pytest.fixture
def start(tmp_path):
    """Starts ablate.py with runs of two epochs, in an empty folder."""

    def popen(*arguments):
        return subprocess.Popen(
            [sys.executable, str(PROJECT / "ablate.py"), *arguments, *SHORT],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return popen


@pytest.mark.parametrize("name", NAMES)
def test_an_ablation_is_the_projects_configuration_with_one_change(name):
    base = load_config(PROJECT / "config.yaml", []).as_dict()
    ablation = load_config(PROJECT / "ablations" / f"{name}.yaml", []).as_dict()
    assert len([key for key in base if base[key] != ablation[key]]) == 1


def test_interrupted_grid_goes_on_and_repeats_nothing(start, tmp_path):
    arguments = ("--only", "no_positions", "--seeds", "0", "1")
    process = start(*arguments)
    deadline = time.monotonic() + 120
    while not any(tmp_path.glob("runs/ablations/no_positions/seed-0/runs/*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "The same command continues" in err
    first_run = next(tmp_path.glob("runs/ablations/config/seed-0/runs/*/metrics.jsonl"))
    before = first_run.stat().st_mtime_ns

    process = start(*arguments)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    assert out.count("finished before") == 1
    assert first_run.stat().st_mtime_ns == before
    assert len(list(tmp_path.glob("runs/ablations/*/seed-*/runs/*"))) == 4  # one run a cell: none was begun again
    rows = json.loads((tmp_path / "runs/ablations/results.json").read_text())["ablations"]
    assert {name: sorted(seeds) for name, seeds in rows.items()} == {
        "config.yaml": ["0", "1"],
        "no_positions": ["0", "1"],
    }
    values = [100 * result["accuracy"] for result in rows["no_positions"].values()]
    assert f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" in out
    assert (tmp_path / "runs/ablations/accuracy.png").stat().st_size > 10_000
    assert "| no_positions |" in (tmp_path / "runs/ablations/table.md").read_text()

    process = start(*arguments, "--set", "learning_rate=0.5")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "was trained with learning_rate" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "no_position"], "--only no_position: there is no such ablation; there are: no_positions"),
        (["--set", "seed=3"], "--set seed=3: name the seeds with --seeds"),
        (["--set", "epoch=3"], "--set epoch=3: unknown key 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_mistakes(project, capsys, arguments, message):
    assert run_script(lambda: ablate.main(arguments)) == 2
    assert message in capsys.readouterr().err


def test_a_failed_run_stops_the_grid(project, capsys):
    code = run_script(lambda: ablate.main(["--seeds", "0", "--set", *SHORT[1:], "learning_rate=1e30", "grad_clip=0"]))
    assert code == 1


def test_a_setting_that_a_run_refuses_is_wrong_use(project, capfd):
    assert run_script(lambda: ablate.main(["--seeds", "0", "--set", *SHORT[1:], "momentum=0.5"])) == 2
    assert "momentum is set, but nothing reads it" in capfd.readouterr().err


def test_differences_are_those_of_the_same_seed():
    result = {"epoch": 1, "seconds": 60.0}
    rows = {
        "config.yaml": {0: result | {"accuracy": 0.5}, 1: result | {"accuracy": 0.7}},
        "patch_2": {0: result | {"accuracy": 0.4}, 1: result | {"accuracy": 0.6}},
    }
    table = ablate.table_of(rows, {"config.yaml": 1000, "patch_2": 1100})
    assert table.splitlines()[-2:] == [
        "| config.yaml | 1,000 | 60.00 ± 14.14 |  | 2 | 1.0 |",
        "| patch_2 | 1,100 | 50.00 ± 14.14 | -10.00 ± 0.00 | 2 | 1.0 |",
    ]
