import math

import pytest
import torch
from torch import nn

from engine.config import Config
from engine.optim import build_optimizer, build_scheduler, restore_schedule


def rates_over(config, epochs, optimizer=None):
    """The learning rate of every epoch, and the one after the last."""
    optimizer = optimizer or build_optimizer(nn.Linear(2, 2), config)
    scheduler = build_scheduler(optimizer, config)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(epochs):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_cosine_over_50_epochs():
    rates = rates_over(Config(epochs=50), 50)
    golden = {0: 1e-3, 1: 9.990133642e-4, 10: 9.045084972e-4, 25: 5e-4, 40: 9.549150281e-5, 49: 9.866357858e-7, 50: 0.0}
    for epoch, rate in golden.items():
        assert math.isclose(rates[epoch], rate, rel_tol=1e-9, abs_tol=1e-15), epoch
    assert rates == sorted(rates, reverse=True)


def test_cosine_is_that_of_torch():
    optimizer = build_optimizer(nn.Linear(2, 2), Config())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for rate in rates_over(Config(epochs=50), 50):
        assert math.isclose(optimizer.param_groups[0]["lr"], rate, rel_tol=1e-9, abs_tol=1e-15)
        optimizer.step()
        scheduler.step()


def test_cosine_does_not_rise_again():
    assert rates_over(Config(epochs=3), 6)[3:] == [0, 0, 0, 0]


def test_constant():
    assert set(rates_over(Config(scheduler="constant", learning_rate=0.1), 5)) == {0.1}


def test_schedule_continues_on_the_curve_of_the_new_horizon():
    short, long = Config(epochs=4), Config(epochs=10)
    optimizer = build_optimizer(nn.Linear(2, 2), short)
    scheduler = build_scheduler(optimizer, short)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    again = build_optimizer(nn.Linear(2, 2), long)
    continued = build_scheduler(again, long)
    again.load_state_dict(optimizer.state_dict())
    restore_schedule(continued, scheduler.state_dict())
    expected = rates_over(long, 10)
    assert again.param_groups[0]["lr"] == continued.get_last_lr()[0] == expected[3]
    again.step()
    continued.step()
    assert again.param_groups[0]["lr"] == expected[4]


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_settings_reach_the_optimizer(name, kind):
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, Config(optimizer=name, learning_rate=0.02, weight_decay=0.03, momentum=0.4))
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.03)
    assert group.get("momentum", 0.4) == 0.4
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}


def test_default_weight_decay_is_that_of_config_yaml():
    assert build_optimizer(nn.Linear(1, 1), Config()).param_groups[0]["weight_decay"] == 1e-4
