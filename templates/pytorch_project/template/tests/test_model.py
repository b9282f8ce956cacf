"""What holds for every architecture, tried on the one of verify.yaml."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from engine.build import model_of
from engine.config import load_config
from engine.errors import UserError
from models.model import available_models, build_model

PROJECT = Path(__file__).parents[1]
SPEC = yaml.safe_load((PROJECT / "verify.yaml").read_text())
CLASSES, SHAPE = SPEC["num_classes"], SPEC["input_size"]
# Large networks on large images would take minutes; counts and shapes of these are checked without computing.
LARGE = SHAPE[1] > 32


@pytest.fixture
def model():
    """The model of verify.yaml, with a random head: one that starts at 0 hides everything before it."""
    if LARGE:
        pytest.skip("large model")
    torch.manual_seed(0)
    network = build_model(**SPEC["kwargs"])
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.nn.init.normal_(last.weight, std=0.02)
    return network


def test_verify_yaml_agrees_with_the_model():
    with torch.device("meta"):
        network = build_model(**SPEC["kwargs"])
        assert network(torch.zeros(2, *SHAPE)).shape == (2, CLASSES)
    assert sum(p.numel() for p in network.parameters()) == SPEC["expect_params"]
    assert all(p.requires_grad for p in network.parameters())


def test_config_yaml_asks_for_the_model_of_verify_yaml():
    with torch.device("meta"):
        network = model_of(load_config(PROJECT / "config.yaml", []), "meta")
    assert sum(p.numel() for p in network.parameters()) == SPEC["expect_params"]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_output_shape(model, batch_size):
    assert model.eval()(torch.randn(batch_size, *SHAPE)).shape == (batch_size, CLASSES)


def test_every_parameter_gets_a_gradient(model):
    F.cross_entropy(model(torch.randn(8, *SHAPE)), torch.arange(8)).backward()
    for name, parameter in model.named_parameters():
        # Batch norm subtracts the mean, and with it the bias of the convolution before it: its gradient is 0 by nature.
        if name.startswith("blocks") and name.endswith("0.bias"):
            assert parameter.grad is not None
        else:
            assert parameter.grad.abs().max() > 1e-8, name


def test_samples_do_not_influence_each_other(model):
    images = torch.randn(4, *SHAPE, requires_grad=True)
    model.eval()(images)[0].sum().backward()
    assert images.grad[0].abs().sum() > 0
    assert torch.count_nonzero(images.grad[1:]) == 0


def test_learns_a_small_batch_by_heart(model):
    images, labels = torch.randn(32, *SHAPE), torch.randint(10, (32,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (model(images).argmax(1) == labels).all()


def test_initial_loss_is_that_of_guessing():
    if LARGE:
        pytest.skip("large model")
    torch.manual_seed(0)
    loss = F.cross_entropy(build_model(**SPEC["kwargs"])(torch.randn(64, *SHAPE)), torch.randint(10, (64,)))
    assert loss.item() == pytest.approx(2.303, abs=0.25)  # ln 10


def test_unknown_model():
    with pytest.raises(ValueError, match=f"no model is called 'resnet99'; there are: {', '.join(available_models())}"):
        build_model("resnet99", 10)


def test_file_that_was_left_out(load_text):
    missing = {"cnn", "resnet", "vit"} - set(available_models())
    for name in missing:
        with pytest.raises(UserError, match=f"model {name} cannot be built: no model is called '{name}'"):
            model_of(load_text(f"model: {name}\n"))
