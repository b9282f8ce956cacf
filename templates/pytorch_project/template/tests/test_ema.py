import shutil

import pytest
import torch
from records import last, metrics, same
from torch import nn

from engine.ema import Ema


def test_average_follows_the_weights():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema = Ema(model, decay=0.5)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 1
        model[1].num_batches_tracked += 7
    ema.update(model)  # of the first update the decay is 1 / 10
    torch.testing.assert_close(ema.model[0].weight, before + 0.9)
    torch.testing.assert_close(ema.model[1].running_mean, torch.full((2,), 0.9))
    assert ema.model[1].num_batches_tracked == 7
    for _ in range(20):
        ema.update(model)
    with torch.no_grad():
        model[0].weight += 1
    ema.update(model)
    torch.testing.assert_close(ema.model[0].weight, model[0].weight - 0.5, atol=1e-4, rtol=0)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


@pytest.mark.parametrize("epochs", [1, 2])
def test_run_with_an_average_continues_as_if_never_stopped(run_train, epochs):
    settings = ["ema_decay=0.9", "scheduler=constant"]  # another schedule depends on the number of epochs
    assert run_train("--set", "epochs=3", *settings) == 0
    expected, lines = last(), metrics()
    assert not same(expected["model"], expected["training_model"])
    shutil.rmtree("runs")
    shutil.rmtree("checkpoints")
    assert run_train("--set", f"epochs={epochs}", *settings) == 0
    assert run_train("--set", "epochs=3", *settings) == 0
    assert same(last(), expected)
    assert metrics() == lines
