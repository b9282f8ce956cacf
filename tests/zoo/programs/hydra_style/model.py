"""A multilayer perceptron."""

from torch import nn


class MLP(nn.Module):
    def __init__(self, in_features, hidden, num_classes, dropout):
        super().__init__()
        layers = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU(), nn.Dropout(dropout)]
            in_features = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_features, num_classes))

    def forward(self, x):
        return self.layers(x)
