import itertools
import os
import resource
from pathlib import Path

import pytest
import torch
import yaml
from conftest import DIGITS, MODEL
from records import last, metrics, status, the_run

import train
from engine import checkpoint as ckpt
from engine.build import model_of
from engine.config import make_config
from engine.lock import exclusive


def test_a_run_leaves_what_it_should(run_train, capsys):
    assert run_train() == 0
    printed = capsys.readouterr()
    assert "Using device: cpu" in printed.out
    assert "parameters, 80 training and 20 validation images" in printed.out
    assert "Epoch 3/3  train loss" in printed.out
    assert "Training complete after 3 epochs! Best val acc: " in printed.out
    assert (
        status() | {"state": "done", "epoch": 3, "epochs": 3, "step": 15, "steps": 15, "pid": os.getpid()} == status()
    )
    assert len(metrics("train")) == 15
    assert [line["lr"] for line in metrics("epoch")] == pytest.approx([1e-3, 7.5e-4, 2.5e-4])
    for path in (ckpt.CONFIG, the_run() / "config.yaml"):
        assert yaml.safe_load(path.read_text()).items() <= last()["config"].items()
    assert run_train("--config", str(ckpt.CONFIG)) == 0
    assert "complete after 3 epochs already" in capsys.readouterr().out
    assert list(the_run().glob("events.out.tfevents.*"))


def test_it_learns(run_train):
    epochs = {"cnn": 6, "resnet": 40, "vit": 60}[MODEL]  # on 80 images; few steps an epoch
    assert run_train("--set", f"epochs={epochs}", "augment=false") == 0
    epochs = metrics("epoch")
    assert epochs[-1]["train_loss"] < 0.3 * epochs[0]["train_loss"]
    assert max(line["val_accuracy"] for line in epochs) > 0.9


def test_checkpoint_has_the_promised_keys(run_train):
    assert run_train("--set", "epochs=1") == 0
    checkpoint = last()
    assert {"model", "optimizer", "scheduler", "epoch", "step", "best", "rng", "config"} <= checkpoint.keys()
    assert (checkpoint["epoch"], checkpoint["step"]) == (1, 5)
    assert checkpoint["best"] == {"accuracy": metrics("epoch")[0]["val_accuracy"], "epoch": 1}


def test_early_stopping(run_train, monkeypatch, capsys):
    accuracies = itertools.chain([0.2, 0.5, 0.5, 0.4, 0.3, 0.9], itertools.repeat(0.1))
    monkeypatch.setattr(train, "loss_and_accuracy", lambda *_: (1.0, next(accuracies)))
    assert run_train("--set", "epochs=9", "patience=3") == 0
    assert "Early stopping triggered after 5 epochs" in capsys.readouterr().out
    assert (status()["state"], last()["best"]) == ("stopped_early", {"accuracy": 0.5, "epoch": 2})
    assert torch.load(ckpt.BEST, weights_only=True)["epoch"] == 2
    assert run_train("--set", "epochs=9", "patience=4") == 0  # more patience: goes on, and finds a better one
    assert last()["best"]["epoch"] == 6


def test_epoch_means_weigh_every_image_the_same(run_train):
    # 80 images in batches of 48: the second has 32.
    assert run_train("--set", "batch_size=48", "epochs=1", "log_every=1") == 0
    first, whole = metrics("train")
    assert metrics("epoch")[0]["train_loss"] == whole["loss"]
    progress = train.Progress()
    progress.count(loss=2.0, correct=10, images=48)
    progress.count(loss=5.0, correct=20, images=32)
    assert progress.loss_sum / progress.seen == pytest.approx((2 * 48 + 5 * 32) / 80)
    assert first["loss"] != whole["loss"]


def test_gradient_is_clipped_and_its_norm_logged_before(run_train, monkeypatch):
    norms = []

    def spy(parameters, limit, original=torch.nn.utils.clip_grad_norm_):
        parameters = list(parameters)
        before = original(parameters, limit)
        norms.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    assert run_train("--set", "epochs=1", "grad_clip=0.01") == 0
    assert max(norms) == pytest.approx(0.01, rel=1e-3)
    assert min(line["grad_norm"] for line in metrics("train")) > 0.1


def test_non_finite_loss_stops_and_can_be_replayed(run_train, capsys):
    assert run_train("--set", "learning_rate=1e30", "optimizer=sgd") == 1
    error = capsys.readouterr().err
    assert "nan" in error
    assert error.count("\n") == 1
    saved = torch.load(the_run() / "nonfinite.pt", weights_only=True)
    model = model_of(make_config(saved["config"], {}))
    model.load_state_dict(saved["model"])
    loss = torch.nn.functional.cross_entropy(model.train()(saved["images"]), saved["labels"])
    assert not loss.isfinite()
    assert (status()["state"], status()["message"]) == ("failed", error.removeprefix("error: ").strip())


def test_full_disk_ends_in_one_line(run_train, capsys):
    assert run_train("--set", "epochs=1") == 0
    before = ckpt.LAST.read_bytes(), metrics()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, len(before[0]) // 2):  # room for nothing; for all but a checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            code = run_train("--set", "epochs=2", "optimizer=adam")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (2, 1), error
        assert "File too large" in error
        assert ckpt.LAST.read_bytes() == before[0]
        assert metrics()[: len(before[1])] == before[1]
        assert not list(Path("checkpoints").glob(".last*"))
    # The best one is written first, where the second epoch is better than the first.
    file = {"cnn": "best.pt", "resnet": "last.pt", "vit": "best.pt"}[MODEL]
    assert f"{file} could not be written (File too large); the checkpoint saved before is kept" in error
    assert (status()["state"], status()["message"]) == ("failed", error.removeprefix("error: ").strip())
    assert run_train("--set", "epochs=2") == 0


def test_two_trainings_at_once(run_train, capsys):
    with exclusive(ckpt.FOLDER):
        assert run_train() == 2
    assert "another process is training" in capsys.readouterr().err


def test_no_cuda_here(run_train, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_train("--set", "device=cuda") == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_tensorboard_curves(run_train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run_train("--set", "log_every=2") == 0
    curves = EventAccumulator(str(the_run()))
    curves.Reload()
    epoch_curves = ["LearningRate", "Loss/train", "Loss/val", "Accuracy/train", "Accuracy/val"]
    assert set(curves.Tags()["scalars"]) == {*epoch_curves, "GradientNorm"}
    assert [event.step for event in curves.Scalars("GradientNorm")] == [2, 4, 6, 8, 10, 12, 14]
    for name in epoch_curves:
        assert [event.step for event in curves.Scalars(name)] == [5, 10, 15]
    logged = [line["val_loss"] for line in metrics("epoch")]
    assert [event.value for event in curves.Scalars("Loss/val")] == pytest.approx(logged, rel=1e-6)


def test_every_key_of_the_projects_file_is_read(run_train):
    whole_file = Path(__file__).parents[1] / "config.yaml"
    assert run_train("--config", str(whole_file), *DIGITS, "epochs=1") == 0
    assert set(yaml.safe_load(whole_file.read_text())) <= set(yaml.safe_load(ckpt.CONFIG.read_text()))


def test_the_projects_file_names_every_key_that_is_read(run_train):
    whole_file = Path(__file__).parents[1] / "config.yaml"
    assert run_train("--config", str(whole_file), *DIGITS, "epochs=1") == 0
    assert set(yaml.safe_load(ckpt.CONFIG.read_text())) == set(yaml.safe_load(whole_file.read_text()))


def test_last_checkpoint_every_few_epochs_and_at_the_end(run_train, monkeypatch):
    saved = []

    def spy(checkpoint, path, original=ckpt.save_checkpoint):
        saved.append((path.name, checkpoint["epoch"]))
        original(checkpoint, path)

    monkeypatch.setattr(ckpt, "save_checkpoint", spy)
    assert run_train("--set", "epochs=5", "checkpoint_every=2") == 0
    assert [epoch for name, epoch in saved if name == "last.pt"] == [2, 4, 5]
    assert last()["epoch"] == 5


def gradients(run_train, monkeypatch, *settings):
    """The gradient of each update of an epoch, before clipping; afterwards the folder is as before."""
    seen = []

    def spy(parameters, limit, original=torch.nn.utils.clip_grad_norm_):
        parameters = list(parameters)
        seen.append(torch.cat([p.grad.flatten() for p in parameters]))
        return original(parameters, limit)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
        patch.setattr("engine.build.build_model", lambda *_, **__: torch.nn.Sequential(torch.nn.Flatten(), LINEAR))
        assert run_train("--fresh", "--set", "epochs=1", "augment=false", "optimizer=sgd", *settings) == 0
    return seen


LINEAR = torch.nn.Linear(3 * 32 * 32, 10)


def test_accumulated_gradient_is_that_of_one_large_batch(run_train, monkeypatch, project):
    # 80 images. Windows of 3 batches of 12: 36, 36, and the last with one batch of 8 alone.
    torch.nn.init.zeros_(LINEAR.weight)
    frozen = ("learning_rate=1e-30", "weight_decay=0", "momentum=0")
    config = project / "config.yaml"
    config.write_text("dataset: digits\nval_fraction: 0.25\ndevice: cpu\n")
    accumulated = gradients(run_train, monkeypatch, *frozen, "batch_size=12", "accumulation_steps=3")
    whole = gradients(run_train, monkeypatch, *frozen, "batch_size=36")
    assert len(accumulated) == len(whole) == 3
    for left, right in zip(accumulated, whole, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-4)
