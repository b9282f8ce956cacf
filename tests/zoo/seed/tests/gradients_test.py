"""Run by hand: python tests/gradients_test.py"""

import torch
from model import SimpleCNN


def test_model():
    model = SimpleCNN(num_classes=10)
    output = model(torch.randn(4, 3, 32, 32))
    assert output.shape == (4, 10)
    output.sum().backward()
    for name, param in model.named_parameters():
        if param.grad is None:
            print(f"no gradient for {name}")
        else:
            print(f"gradient exists for {name}")


if __name__ == "__main__":
    test_model()
