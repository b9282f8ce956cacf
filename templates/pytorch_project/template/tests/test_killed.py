"""What a kill leaves behind, and that the same command then ends as if there had been none."""

from pathlib import Path

import pytest
from conftest import KEEPING
from records import metrics, same, saved, status, the_run

import train
from engine import checkpoint as ckpt
from engine import keep, run
from engine.run import Run


class Killed(BaseException):
    """Like a kill, nothing that training does may depend on what comes after it."""


def kill_when(monkeypatch, owner, name, condition):
    """Raise Killed in place of the call `owner.name` for which the condition holds."""
    original = getattr(owner, name)

    def call(*arguments, **options):
        if condition(*arguments, **options):
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("name", ["epoch-0004.pt", "best-0004.pt", "best-0005.pt", "best.pt", "last.pt"])
def test_kill_at_any_file(run_train, in_one_go, monkeypatch, name):
    with monkeypatch.context() as patch:
        for owner in (ckpt, keep):
            kill_when(patch, owner, "save_checkpoint", lambda content, path: path.name == name and content["epoch"] > 1)
        with pytest.raises(Killed):
            run_train(*KEEPING)
    assert run_train(*KEEPING) == 0
    assert same(saved(), in_one_go[0])
    assert metrics() == in_one_go[1]


@pytest.mark.parametrize("first", ["epoch-0004.pt", "best-0005.pt", "best.pt"])
def test_files_of_an_epoch_are_completed(run_train, in_one_go, monkeypatch, capsys, first):
    # last.pt is to be written at the end alone, and the kill comes right after another file of the epoch.
    settings = [*KEEPING, "checkpoint_every=6"]
    seen = []

    def after_first(content, path):
        seen.append((path.name, content["epoch"]))
        return len(seen) > 1 and seen[-2][0] == first and seen[-2][1] > 3

    with monkeypatch.context() as patch:
        for owner in (ckpt, keep):
            kill_when(patch, owner, "save_checkpoint", after_first)
        with pytest.raises(Killed):
            run_train(*settings)
    capsys.readouterr()
    assert run_train(*settings) == 0
    assert "checkpoints/last.pt is missing; continuing from checkpoints/" in capsys.readouterr().err
    for content in in_one_go[0].values():
        content["config"]["checkpoint_every"] = 6
    assert same(saved(), in_one_go[0])
    assert metrics() == in_one_go[1]


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
@pytest.mark.parametrize("call", ["write_config", "update_status", "log"])
def test_killed_in_the_first_epoch(run_train, monkeypatch, call, fresh):
    with monkeypatch.context() as patch:
        kill_when(patch, run if call == "write_config" else Run, call, lambda *_, **values: values.get("step", 3) == 3)
        with pytest.raises(Killed):
            run_train(*fresh)
    (folder,) = Path("runs").iterdir()
    (folder / "status.json").unlink(missing_ok=True)
    if call == "log":
        (folder / "status.json").write_text('{"state": "running", "epoch": 1}')
    assert run_train(*fresh) == 0
    assert (the_run(), status()["state"]) == (folder, "done")  # the same folder, and no other
    assert [line["step"] for line in metrics("train")] == list(range(1, 16))
    assert not (ckpt.FOLDER / "archive").exists()


def test_a_run_that_was_not_killed_keeps_its_folder(run_train):
    assert run_train("--set", "epochs=1") == 0
    for path in ckpt.saved_files():
        path.unlink()
    assert run_train("--set", "epochs=1") == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_another_run_gets_another_folder(run_train, monkeypatch):
    with monkeypatch.context() as patch:
        kill_when(patch, train.ckpt, "save_checkpoint", lambda *_: True)
        kill_when(patch, keep, "save_checkpoint", lambda *_: True)
        with pytest.raises(Killed):
            run_train("--set", "epochs=1")
    (folder,) = Path("runs").iterdir()
    (folder / "status.json").write_text('{"state": "running", "epoch": 1}')
    assert run_train("--set", "epochs=1", "seed=1") == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_temporary_files_of_a_kill_are_removed(run_train, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # after a kill, nothing tidies up
        kill_when(patch, Path, "replace", lambda path, target: target == ckpt.LAST or target.name == "status.json")
        with pytest.raises(Killed):
            run_train()
    others = [Path("runs/.table.md-12345678.tmp"), Path("runs/ablations/.results.json-12345678.tmp"), Path("mine.tmp")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    left = sorted(path.name.rpartition("-")[0] for path in Path().rglob(".*.tmp") if path not in others)
    assert left == [".status.json"]
    assert run_train("--set", "epochs=1") == 0
    assert set(Path().rglob("*.tmp")) == set(others)
