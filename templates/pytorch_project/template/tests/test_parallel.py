import pytest
from torch import nn

from engine.device import choose_compute
from engine.errors import UserError
from engine.parallel import ALONE, World, distribute, join_world
from engine.sharding import shard_model
from engine.stop import GracefulStop, StopRequestedError


def test_one_process_needs_no_others():
    with join_world("cpu") as world:
        assert world == ALONE
        assert world.gather("x") == ["x"]
        assert world.from_first(lambda: 5) == 5
        assert world.mean([1.0, 2.0], weight=3) == [1.0, 2.0]
        model = nn.Linear(2, 2)
        assert distribute(model, world) is model


@pytest.mark.parametrize(
    ("batch_size", "training", "validation", "whole", "message"),
    [
        (8, 80, 30, False, None),
        (8, 81, 30, False, "last batch of training has 1 images for 2 processes"),
        (8, 80, 1, False, "first batch of validation has 1"),
        (8, 80, 33, False, None),
        (8, 80, 33, True, "last batch of validation has 1"),
    ],
)
def test_every_process_gets_an_image(batch_size, training, validation, whole, message):
    world = World(size=2)
    if message is None:
        world.check_batches(batch_size, training, validation, whole=whole)
        return
    with pytest.raises(UserError, match=message):
        world.check_batches(batch_size, training, validation, whole=whole)


def test_what_is_not_possible_is_said(load_text):
    with pytest.raises(UserError, match="sync_batchnorm"):
        distribute(nn.Linear(2, 2), World(size=2), sync_batchnorm=True)
    with pytest.raises(UserError, match="BatchNorm"):
        shard_model(nn.Sequential(nn.BatchNorm2d(2)))
    config = load_text("model: vit\nshard: true\nema_decay: 0.9\ndevice: cpu\n")
    with pytest.raises(UserError, match="ema_decay"):
        choose_compute(config)


def test_processes_stop_when_they_have_agreed_to(monkeypatch):
    stop = GracefulStop(World(size=2))
    stop.requested = True
    batches = stop.watch(range(5))
    assert next(batches) == 0
    monkeypatch.setattr(World, "any", lambda self, flag: flag)
    stop.agree()
    with pytest.raises(StopRequestedError):
        next(batches)
