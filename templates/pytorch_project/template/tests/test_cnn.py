import pytest
import torch

from models.cnn import SimpleCNN
from models.model import build_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("cnn", num_classes=10)


def test_parameter_count(model):
    assert sum(p.numel() for p in model.parameters()) == 1_147_914
    assert all(p.requires_grad for p in model.parameters())


def test_learns_a_small_batch_by_heart(model):
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (model(images).argmax(1) == labels).all()


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
