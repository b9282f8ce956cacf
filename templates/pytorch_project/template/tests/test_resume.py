import os
import signal
from pathlib import Path

import pytest
from records import last, metrics, same, status, the_run
from torch import nn

from engine import build
from engine import checkpoint as ckpt
from engine.run import Run


@pytest.fixture
def uninterrupted(run_train, project, monkeypatch):
    """The last checkpoint and the metrics of three epochs in one go; leaves the project folder clean."""
    folder = project / "reference"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run_train("--config", "../config.yaml") == 0
    result = last(), metrics()
    monkeypatch.chdir(project)
    return result


def signal_at(monkeypatch, step, number=signal.SIGINT):
    """Send this process a signal while the batch `step` is being logged."""
    original = Run.log

    def log(self, kind, **values):
        original(self, kind, **values)
        if kind == "train" and values["step"] == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "log", log)


def test_two_runs_are_equal(run_train, uninterrupted):
    assert run_train() == 0
    assert same(last(), uninterrupted[0])
    assert metrics() == uninterrupted[1]


def test_resume_within_accumulation_warmup_and_randaugment(run_train, project, monkeypatch):
    settings = ["--set", "accumulation_steps=2", "schedule_by=step", "warmup_steps=4", "rand_augment=9", "epochs=2"]
    settings += ["optimizer=adamw", "decay_on=weights", "checkpoint_every=2", "log_every=1"]
    (project / "whole").mkdir()
    monkeypatch.chdir(project / "whole")
    assert run_train("--config", "../config.yaml", *settings) == 0
    expected = last(), metrics()
    monkeypatch.chdir(project)
    with monkeypatch.context() as patch:
        signal_at(patch, 4)
        assert run_train(*settings) == 130
    assert last()["step"] == 4
    assert run_train(*settings) == 0
    assert same(last(), expected[0])
    assert metrics() == expected[1]
    assert [line["step"] for line in metrics("train")] == [2, 4, 5, 7, 9, 10]


def test_another_seed_is_another_run(run_train, uninterrupted):
    assert run_train("--set", "seed=1") == 0
    assert not same(last()["model"], uninterrupted[0]["model"])


def test_the_loader_changes_nothing(run_train, uninterrupted):
    assert run_train("--set", "loader=workers", "num_workers=0") == 0
    assert same(last()["model"], uninterrupted[0]["model"])


@pytest.mark.parametrize("step", [1, 5, 7, 14, 15])
def test_resume_after_ctrl_c_is_bit_for_bit(run_train, uninterrupted, monkeypatch, capsys, step):
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        assert run_train() == 130
    assert (status()["state"], last()["step"]) == ("interrupted", step)
    assert "The same command continues" in capsys.readouterr().err
    assert run_train() == 0
    assert f"Continuing {the_run().name}" in capsys.readouterr().out
    assert same(last(), uninterrupted[0])
    assert metrics() == uninterrupted[1]
    assert status()["state"] == "done"


def test_resume_after_a_kill_repeats_what_was_not_saved(run_train, uninterrupted, monkeypatch):
    class Killed(BaseException):
        pass

    def log(self, kind, *, original=Run.log, **values):
        original(self, kind, **values)
        if values["step"] == 13:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        with pytest.raises(Killed):
            run_train()
    assert (last()["step"], len(metrics("train"))) == (10, 13)
    with (the_run() / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    assert run_train() == 0
    assert same(last(), uninterrupted[0])
    assert metrics() == uninterrupted[1]


def test_sigterm_saves_as_well(run_train, monkeypatch):
    signal_at(monkeypatch, 4, signal.SIGTERM)
    assert run_train() == 130
    assert (status()["state"], last()["step"]) == ("interrupted", 4)


def test_second_ctrl_c_ends_at_once(run_train, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    signal_at(monkeypatch, 7)
    monkeypatch.setattr(ckpt, "save_checkpoint", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run_train() == 130
    assert "Traceback" not in capsys.readouterr().err
    assert status()["message"] == "ended at once, without saving"
    assert signal.getsignal(signal.SIGINT) is before


def test_more_epochs_continue(run_train, capsys):
    assert run_train("--set", "epochs=2") == 0
    assert run_train("--set", "epochs=2") == 0
    assert "Training complete after 2 epochs already" in capsys.readouterr().out
    assert run_train("--set", "epochs=4") == 0
    assert [line["epoch"] for line in metrics("epoch")] == [1, 2, 3, 4]
    assert [line["lr"] for line in metrics("epoch")] == pytest.approx([1e-3, 5e-4, 5e-4, 1.46446609e-4])


def test_another_configuration_does_not_continue(run_train, capsys):
    assert run_train("--set", "epochs=1") == 0
    before = ckpt.LAST.read_bytes()
    assert run_train("--set", "batch_size=8", "seed=4") == 2
    error = capsys.readouterr().err
    assert "batch_size was 16 and is 8, seed was 0 and is 4" in error
    assert "--fresh" in error
    assert ckpt.LAST.read_bytes() == before


def test_changed_architecture_does_not_continue(run_train, capsys, monkeypatch):
    assert run_train("--set", "epochs=1") == 0
    monkeypatch.setattr(build, "build_model", lambda name, classes, **options: nn.Linear(2, classes))
    assert run_train() == 2
    assert "does not fit the present code of the model" in capsys.readouterr().err


def test_fresh_archives_and_starts_anew(run_train):
    assert run_train("--set", "epochs=1") == 0
    before, run_id = ckpt.BEST.read_bytes(), the_run().name
    assert run_train("--fresh", "--set", "epochs=1", "seed=1") == 0
    assert (Path("checkpoints/archive") / run_id / "best.pt").read_bytes() == before
    assert len(list(Path("runs").iterdir())) == 2


def test_damaged_checkpoint(run_train, capsys):
    ckpt.LAST.parent.mkdir()
    ckpt.LAST.write_bytes(b"half")
    assert run_train() == 2
    assert "last.pt is damaged" in capsys.readouterr().err
    assert run_train("--fresh", "--set", "epochs=1") == 0
