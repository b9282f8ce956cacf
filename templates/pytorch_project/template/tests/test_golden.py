import json
from pathlib import Path

import pytest

import compare
import golden
from engine.errors import run_script


@pytest.fixture
def run_golden(project):
    return lambda *arguments: run_script(lambda: golden.main(list(arguments)))


def test_first_losses_are_the_stored_ones(run_golden, capsys):
    assert run_golden("--update") == 0
    assert len(json.loads(golden.STORED.read_text())["losses"]) == 5  # an epoch has no more
    assert run_golden() == 0
    assert "equal to the last bit" in capsys.readouterr().out
    assert not Path("checkpoints").exists()
    assert not Path("runs").exists()


def test_a_change_of_the_training_is_seen(run_golden, capsys, monkeypatch):
    assert run_golden("--update") == 0
    monkeypatch.setattr(golden.Trainer, "__init__", with_other_rate(golden.Trainer.__init__))
    assert run_golden() == 1
    assert "differs" in capsys.readouterr().out


def with_other_rate(original):
    def changed(self, *arguments, **options):
        original(self, *arguments, **options)
        self.optimizer.param_groups[0]["lr"] *= 1.5

    return changed


def test_other_machines_may_round(run_golden, capsys):
    assert run_golden("--update") == 0
    stored = json.loads(golden.STORED.read_text())
    stored["surroundings"]["torch"] = "1.0"
    stored["losses"] = [loss * (1 + 3e-6) for loss in stored["losses"]]
    golden.STORED.write_text(json.dumps(stored))
    assert run_golden() == 0
    assert "stored elsewhere" in capsys.readouterr().out
    stored["losses"][2] *= 1 + 1e-4
    golden.STORED.write_text(json.dumps(stored))
    assert run_golden() == 1
    assert "torch was 1.0" in capsys.readouterr().err


def test_golden_in_wrong_use(run_golden, capsys):
    assert run_golden() == 2
    assert "--update" in capsys.readouterr().err
    assert run_golden("--update") == 0
    assert run_golden("--set", "learning_rate=0.002") == 2
    assert "learning_rate was 0.001 and is 0.002" in capsys.readouterr().err
    for damaged in ("{", '{"settings": {}}', '{"settings": {}, "losses": [], "surroundings": {}}'):
        golden.STORED.write_text(damaged)
        assert run_golden() == 2
        assert "damaged" in capsys.readouterr().err
    assert run_golden("--update", "--set", "learning_rate=1e30", "grad_clip=0") == 1
    assert "not finite" in capsys.readouterr().err


def write_run(name, losses):
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    lines = [{"kind": "train", "step": n, "epoch": 1, "loss": loss} for n, loss in enumerate(losses, start=1)]
    last = losses[-1]
    lines.append({"kind": "epoch", "epoch": 1, "train_loss": last, "val_loss": last, "val_accuracy": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.fixture
def run_compare(project):
    return lambda *arguments: run_script(lambda: compare.main(list(arguments)))


def test_two_runs_are_compared(run_compare, capsys):
    same, other = write_run("a", [2.0, 1.5, 1.0]), write_run("b", [2.0, 1.5, 1.25])
    assert run_compare(same, same) == 0
    assert compare.PICTURE.exists()
    assert run_compare(same, other) == 1
    assert "part at batch 3: 1.0 and 1.25" in capsys.readouterr().out
    assert run_compare(same, other, "--tolerance", "0.3") == 0
    broken = write_run("c", [2.0, None, 1.0])
    assert run_compare(same, broken, "--tolerance", "0.3") == 1
    assert run_compare(broken, broken) == 0


def test_compare_in_wrong_use(run_compare, capsys):
    run = write_run("a", [2.0])
    assert run_compare(run, "runs/nope") == 2
    assert "runs/nope/metrics.jsonl does not exist" in capsys.readouterr().err
    for line in ('{"kind": "tr', '{"kind": "train", "step": 1}', '{"kind": "epoch", "epoch": 1}'):
        Path("runs/a/metrics.jsonl").write_text(line)
        assert run_compare(run, run) == 2
        assert "metrics.jsonl:1" in capsys.readouterr().err
