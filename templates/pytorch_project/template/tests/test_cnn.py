from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from models.cnn import SimpleCNN
from models.model import build_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("cnn", num_classes=10)


def test_parameter_count(model):
    assert sum(p.numel() for p in model.parameters()) == 1_147_914
    assert all(p.requires_grad for p in model.parameters())


def test_verify_yaml_agrees_with_the_model():
    spec = yaml.safe_load((Path(__file__).parents[1] / "verify.yaml").read_text())
    model = build_model(**spec["kwargs"])
    assert sum(p.numel() for p in model.parameters()) == spec["expect_params"]
    assert model(torch.zeros(2, *spec["input_size"])).shape == (2, spec["num_classes"])


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_output_shape(model, batch_size):
    assert model.eval()(torch.randn(batch_size, 3, 32, 32)).shape == (batch_size, 10)


def test_every_parameter_gets_a_gradient(model):
    F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    for name, parameter in model.named_parameters():
        # Batch norm subtracts the mean, and with it the bias of the convolution before it: its gradient is 0 by nature.
        if name.startswith("blocks") and name.endswith("0.bias"):
            assert parameter.grad is not None
        else:
            assert parameter.grad.abs().max() > 1e-6, name


def test_samples_do_not_influence_each_other(model):
    images = torch.randn(4, 3, 32, 32, requires_grad=True)
    model.eval()(images)[0].sum().backward()
    assert images.grad[0].abs().sum() > 0
    assert torch.count_nonzero(images.grad[1:]) == 0


def test_learns_a_small_batch_by_heart(model):
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (model(images).argmax(1) == labels).all()


def test_initial_loss_is_that_of_guessing(model):
    loss = F.cross_entropy(model(torch.randn(64, 3, 32, 32)), torch.randint(10, (64,)))
    assert loss.item() == pytest.approx(2.303, abs=0.25)  # ln 10


def test_other_sizes():
    model = SimpleCNN(3, channels=(8, 16), hidden=20, in_channels=1, image_size=28)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, "at least one block"),
        ({"channels": (32, 0)}, "channels must be at least 1"),
        ({"hidden": -1}, "hidden must be at least 1"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"image_size": 7}, "image_size 7 is too small"),
    ],
)
def test_impossible_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        SimpleCNN(**options)


def test_wrong_input_is_named(model):
    with pytest.raises(ValueError, match=r"\(3, 32, 32\), got \(2, 3, 28, 28\)"):
        model(torch.zeros(2, 3, 28, 28))


def test_unknown_model():
    with pytest.raises(ValueError, match="no model is called 'resnet99'; there are: cnn"):
        build_model("resnet99", 10)
