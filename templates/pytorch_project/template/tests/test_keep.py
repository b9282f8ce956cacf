"""Which checkpoints stay, and which one training continues from."""

import errno
import os
from pathlib import Path

import pytest
import torch
from conftest import KEEPING
from records import last, metrics, same, saved, the_run

from engine import checkpoint as ckpt
from engine.keep import Keep
from engine.progress import Progress


def damage(path):
    """Change a few bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(byte ^ 0xFF for byte in content[middle : middle + 8])
    path.write_bytes(content)


def test_best_alone_is_the_default(run_train):
    assert run_train() == 0
    assert saved().keys() == {"last.pt", "best.pt"}


def test_the_best_and_every_few_epochs_stay(in_one_go):
    contents, _ = in_one_go
    epochs = {name: content["epoch"] for name, content in contents.items()}
    # Of the equal epochs 2 and 4, the earlier one is better, as for best.pt.
    assert epochs == {"last.pt": 6, "best.pt": 5, "best-0002.pt": 2, "best-0005.pt": 5, "epoch-0004.pt": 4}
    assert same(contents["best.pt"], contents["best-0005.pt"])
    assert contents["best-0002.pt"]["best"] == {"accuracy": 0.5, "epoch": 2}


def test_what_else_is_in_the_folder_stays(run_train, accuracies):
    ckpt.FOLDER.mkdir()
    own = [ckpt.FOLDER / name for name in ("best-2025.pt.txt", "best-2025.txt", "mine.pt")]
    for path in own:
        path.write_text("mine")
    assert run_train(*KEEPING) == 0
    assert [path.read_text() for path in own] == ["mine"] * 3


def test_another_number_of_them_is_no_other_run(run_train, accuracies):
    assert run_train("--set", "epochs=3") == 0
    assert run_train("--set", "epochs=6", "keep_best=3", "keep_every=5") == 0
    assert set(saved()) == {"last.pt", "best.pt", "best-0004.pt", "best-0005.pt", "epoch-0005.pt"}


def test_full_disk_keeps_the_others(run_train, monkeypatch, capsys):
    assert run_train("--set", "epochs=1") == 0
    before = ckpt.LAST.read_bytes()

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_on_a_full_disk(self, checkpoint, original=Keep.save):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_space)
            original(self, checkpoint)

    monkeypatch.setattr(Keep, "save", save_on_a_full_disk)
    assert run_train("--set", "epochs=2", "keep_every=2") == 2
    error = capsys.readouterr().err
    assert "epoch-0002.pt could not be written (No space left on device)" in error
    assert (error.count("\n"), ckpt.LAST.read_bytes()) == (1, before)


@pytest.mark.parametrize(
    ("damaged", "source", "epoch"),
    [
        (["last.pt"], "best.pt", 5),
        (["last.pt", "best.pt"], "best-0005.pt", 5),
        (["last.pt", "best.pt", "best-0005.pt"], "epoch-0004.pt", 4),
    ],
)
def test_damaged_last_checkpoint(run_train, in_one_go, capsys, damaged, source, epoch):
    assert run_train(*KEEPING) == 0
    for name in damaged:
        damage(ckpt.FOLDER / name)
    capsys.readouterr()
    assert run_train(*KEEPING) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("checkpoints/last.pt is damaged or not a checkpoint (")
    assert printed.err.endswith(f"; continuing from checkpoints/{source}, epoch {epoch}\n")
    assert printed.err.count("\n") == 1
    assert all(f"checkpoints/{name} is unusable" in printed.err for name in damaged[1:])
    assert f"at epoch {epoch + 1}, batch 1" in printed.out
    assert same(saved(), in_one_go[0])
    assert metrics() == in_one_go[1]


def test_damaged_last_checkpoint_of_a_finished_run(run_train, capsys):
    assert run_train("--set", "epochs=1") == 0
    before = last()
    damage(ckpt.LAST)
    assert run_train("--set", "epochs=1") == 0
    assert "Training complete after 1 epoch already" in capsys.readouterr().out
    assert same(last(), before)


def test_no_checkpoint_is_intact(run_train, capsys):
    assert run_train() == 0
    damage(ckpt.LAST)
    damage(ckpt.BEST)
    before = ckpt.LAST.read_bytes()
    capsys.readouterr()
    assert run_train() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: checkpoints/last.pt is damaged or not a checkpoint (")
    assert (error.count("\n"), ckpt.LAST.read_bytes()) == (1, before)


def test_other_checkpoint_of_another_configuration(run_train, capsys):
    assert run_train("--set", "epochs=1") == 0
    damage(ckpt.LAST)
    assert run_train("--set", "epochs=1", "seed=3") == 2
    assert "checkpoints/best.pt is of another configuration (seed was 0 and is 3)" in capsys.readouterr().err


def test_kept_ones_are_archived(run_train, accuracies):
    assert run_train(*KEEPING) == 0
    names, run_id = set(saved()), the_run().name
    assert run_train("--fresh", "--set", "epochs=1") == 0
    assert {path.name for path in (ckpt.FOLDER / "archive" / run_id).iterdir()} == names | {"config.yaml"}
    assert saved().keys() == {"last.pt", "best.pt"}


def test_accuracies_of_an_older_checkpoint(run_train):
    assert run_train("--set", "epochs=1") == 0
    content = torch.load(ckpt.LAST, weights_only=True)
    del content["progress"]["accuracies"], content["config"]["keep_best"], content["config"]["keep_every"]
    ckpt.save_checkpoint(content, ckpt.LAST)
    assert run_train("--set", "epochs=2", "keep_best=2") == 0
    assert last()["progress"]["accuracies"].keys() == {2}


def test_which_files_an_epoch_gets():
    progress = Progress()
    for accuracy in (0.1, 0.3, 0.2):
        progress.end_epoch(accuracy)
    assert Keep(best=1, every=0).files(progress) == []
    assert Keep(best=2, every=0).files(progress) == [Path("checkpoints/best-0003.pt")]
    assert Keep(best=1, every=3).files(progress) == [Path("checkpoints/epoch-0003.pt")]
    progress.end_epoch(0.4)
    assert Keep(best=1, every=3).files(progress) == [ckpt.BEST]
