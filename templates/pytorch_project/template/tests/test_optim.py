import math

import pytest
import torch
from torch import nn

from engine.config import Config
from engine.errors import UserError
from engine.optim import build_optimizer, build_scheduler, restore_schedule


def rates_over(config, epochs, optimizer=None, steps_per_epoch=1):
    """The learning rate of every epoch (or update), and the one after the last."""
    optimizer = optimizer or build_optimizer(nn.Linear(2, 2), config)
    scheduler = build_scheduler(optimizer, config, steps_per_epoch)
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
    scheduler = build_scheduler(optimizer, short, 1)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    again = build_optimizer(nn.Linear(2, 2), long)
    continued = build_scheduler(again, long, 1)
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


@pytest.mark.parametrize("decay_on", ["all", "weights"])
def test_which_parameters_decay(decay_on):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model.token, model.no_weight_decay = nn.Parameter(torch.zeros(1, 1, 3)), lambda: {"token"}
    optimizer = build_optimizer(model, Config(decay_on=decay_on, weight_decay=0.3, optimizer="adamw"))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    spared = 0.3 if decay_on == "all" else 0.0
    assert found == {"token": spared, "0.weight": 0.3, "0.bias": spared, "1.weight": spared, "1.bias": spared}


def test_adamw_decays_apart_from_the_gradient():
    layer = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(layer, Config(optimizer="adamw", learning_rate=0.1, weight_decay=0.3))
    before = layer.weight.item()
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    assert math.isclose(layer.weight.item(), before * (1 - 0.1 * 0.3), rel_tol=1e-6)


def test_cosine_to_a_floor():
    rates = rates_over(Config(optimizer="sgd", learning_rate=0.1, min_learning_rate=0.001, epochs=50), 52)
    assert rates[0] == 0.1
    assert math.isclose(rates[25], 0.0505, rel_tol=1e-9)
    assert math.isclose(rates[50], 0.001, rel_tol=1e-9)
    assert rates[52] == rates[50]


def test_floor_above_the_rate():
    with pytest.raises(UserError, match=r"min_learning_rate 0\.1 is above learning_rate 0\.01"):
        rates_over(Config(learning_rate=0.01, min_learning_rate=0.1), 1)


def test_linear_warmup_then_cosine_over_the_updates():
    config = Config(learning_rate=1.0, schedule_by="step", warmup_steps=4, epochs=3)
    rates = rates_over(config, 24, steps_per_epoch=8)
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert math.isclose(rates[14], 0.5)  # half of the 20 updates after the warm-up
    assert math.isclose(rates[24], 0, abs_tol=1e-12)


def test_training_that_is_shorter_than_its_warmup(capsys):
    config = Config(learning_rate=1.0, schedule_by="step", warmup_steps=10, epochs=1)
    assert rates_over(config, 3, steps_per_epoch=4) == [0.1, 0.2, 0.3, 0.4]
    assert "warmup_steps is 10, but the whole training has 4 updates" in capsys.readouterr().out


def test_paper_schedule_of_the_resnet():
    config = Config(
        scheduler="multistep", milestones=[32_000, 48_000], schedule_by="step", learning_rate=0.1, epochs=182
    )
    factor = build_scheduler(build_optimizer(nn.Linear(1, 1), config), config, 352).lr_lambdas[0]
    updates = (0, 31_999, 32_000, 47_999, 48_000, 64_000)
    assert [0.1 * factor(n) for n in updates] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("milestones", [[], [50]])
def test_milestones_that_never_come(milestones):
    with pytest.raises(UserError, match="has none below 50, the end"):
        rates_over(Config(scheduler="multistep", milestones=milestones), 1)
