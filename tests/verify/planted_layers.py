"""Small networks with layers that collapse, places that look alike and norms that are none, and healthy look-alikes.

Every network takes (B, 3, 16, 16) and returns (B, 5) logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.verify.planted import Base
from tests.verify.planted_behaviour import ChannelsApart, CutByHand, MapAsTokens, Mixer
from tests.verify.planted_dataflow import CLASSES, DIM, HEADS, Attention, Net, Residual, ViT, vit

# -- layers in a row -------------------------------------------------------------------------------------------------


class Classifier(Base):
    """Two layers behind the features."""

    between: nn.Module = nn.ReLU()
    hidden = 32

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(128, self.hidden), self.between, nn.Dropout(0.1), nn.Linear(self.hidden, CLASSES)
        )


class ClassifierWithoutRelu(Classifier):
    between = nn.Identity()


class ClassifierOfLowRank(Classifier):
    between = nn.Identity()
    hidden = 3


class ReturnsTheEmbedding(ClassifierWithoutRelu):
    """What lies between the layers is an output of its own."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        embedded = self.head[0](self.pool(self.features(x)).flatten(1))
        return self.head[3](embedded), embedded


class BlockWithoutRelu(Net):
    """Convolution, norm, convolution: linear in eval mode."""

    class Block(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.bn2(self.conv2(self.bn1(self.conv1(x)))))

    def make_block(self) -> nn.Module:
        return self.Block()


class InvertedResidual(Net):
    """A projection without activation, expanded by the next block; depthwise and 1xn convolutions (MobileNetV2)."""

    def make_block(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 12, 1),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 48, 1),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1, groups=48),
            nn.BatchNorm2d(48),
            nn.Conv2d(48, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, 8, (1, 3), padding=(0, 1)),
            nn.Conv2d(8, 8, (3, 1), padding=(1, 0)),
        )


class TokensThenFeatures(Mixer):
    """A layer over the tokens, then one over the features, and nothing between them."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.places, self.features = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.places(self.norm(x).transpose(1, 2)).transpose(1, 2)
            return x + F.gelu(self.features(y))

    block = Block


# -- tables of relative positions ------------------------------------------------------------------------------------


class RelativeBias(Attention):
    """A row for each displacement within 4x4 places (Swin)."""

    step = 7
    rows = 49

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(self.rows, HEADS))
        y, x = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        dy, dx = (t.flatten()[:, None] - t.flatten() + 3 for t in (y, x))
        self.register_buffer("index", dy * self.step + dx)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * self.scale + self.bias()).softmax(-1)

    def bias(self) -> Tensor:
        return self.table[self.index].permute(2, 0, 1)


class CollidingBias(RelativeBias):
    step = 1


class RoomForLargerMaps(RelativeBias):
    step = 15
    rows = 225


class BiasAfterSoftmax(RelativeBias):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * self.scale).softmax(-1) + self.bias()


class SumsItsWeights(Attention):
    """The index of the keys is missing in the values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.merge(torch.einsum("bhij,bhid->bhid", self.weights(q, k), v))


class NormalisesItsWeightsAgain(Attention):
    """Without the weakest keys, and divided by what is left."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = self.weights(q, k)
        weights = weights.masked_fill(weights < 0.01, 0.0)
        return self.merge(weights / weights.sum(-1, keepdim=True) @ v)


class PatchesOnly(ViT):
    """No class token, so that there are 4x4 places."""

    def __init__(self) -> None:
        super().__init__()
        del self.token
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, DIM))

    def embed(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).transpose(1, 2) + self.position


def patches_only(attention: type[nn.Module]) -> type[nn.Module]:
    return type(f"PatchesWith{attention.__name__}", (PatchesOnly,), {"attention": attention, "__module__": __name__})


# -- codes of places -------------------------------------------------------------------------------------------------


class SineCode(PatchesOnly):
    """Fixed codes of rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        del self.position
        self.register_buffer("position", self.table())

    def table(self) -> Tensor:
        y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        omega = 10.0 ** -torch.linspace(0, 1, DIM // 4)
        y, x = (t.flatten()[:, None] * omega for t in self.axes(y, x))
        return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1)

    def axes(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return y, x


class ColumnsTwice(SineCode):
    def axes(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class CosinesOverSines(SineCode):
    """The cosines overwrite the sines, and every other feature stays 0."""

    def table(self) -> Tensor:
        table = torch.zeros(16, DIM)
        angles = torch.arange(16.0)[:, None] * 10.0 ** -torch.linspace(0, 1, DIM // 2)
        table[:, 0::2] = angles.sin()
        table[:, 0::2] = angles.cos()
        return table


class FirstRowOnly(ViT):
    def embed(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position[:, :1]


class NoCode(PatchesOnly):
    def embed(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).transpose(1, 2) + 0 * self.position


class SeesTheBorder(PatchesOnly):
    """No codes, and a stem whose padding tells places at the border apart."""

    def __init__(self) -> None:
        super().__init__()
        del self.position
        self.patches = nn.Conv2d(3, DIM, 7, stride=4, padding=3)

    def embed(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).transpose(1, 2)


# -- norms and branches ----------------------------------------------------------------------------------------------


class OwnNorm(nn.Module):
    power = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        y = centred / (centred.square().mean(1, keepdim=True) + 1e-6) ** self.power
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class ByVariance(OwnNorm):
    power = 1.0


class OwnDrop(nn.Module):
    def __init__(self, rate: float, keeps: float) -> None:
        super().__init__()
        self.rate, self.keeps = rate, keeps

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x / self.keeps * (torch.rand(len(x), 1, 1, 1) < self.keeps)


def with_branch(name: str, *modules: nn.Module) -> type[nn.Module]:
    """The residual network with these modules at the end of its branch."""

    def init(self: Base) -> None:
        Base.__init__(self)
        self.block = nn.Sequential(self.block, *modules)

    return type(name, (Base,), {"__init__": init, "__module__": __name__})


class StridesEverywhere(Net):
    strides = (2, 2, 2, 2, 2, 2, 2)

    def make_block(self) -> nn.Module:
        layers: list[nn.Module] = []
        for stride in self.strides:
            layers += [nn.Conv2d(8, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*layers)


class StridesStageByStage(StridesEverywhere):
    strides = (2, 1, 2, 1, 2, 1)


# -- scales of norms -------------------------------------------------------------------------------------------------


class DrawsEverything(Net):
    """One loop initialises all that it finds, the scales of the norms among it."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)


class DrawsAroundOne(Net):
    """As in DCGAN: layers around zero, norms around one."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
            elif isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)


class BranchesStartAtZero(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.block.bn2.weight)


class TrainedBefore(Net):
    """Scales of both signs that are the same in every build: they came from a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data = torch.randn(len(module.weight), generator=generator)


PLANTED: list[tuple[type[nn.Module], str]] = [
    (ClassifierWithoutRelu, "MOD141"),
    (BlockWithoutRelu, "MOD141"),
    (patches_only(CollidingBias), "MOD142"),
    (patches_only(BiasAfterSoftmax), "MOD116"),
    (vit(SumsItsWeights), "MOD118"),
    (ColumnsTwice, "MOD143"),
    (CosinesOverSines, "MOD143"),
    (FirstRowOnly, "MOD143"),
    (with_branch("NormByVariance", ByVariance()), "MOD144"),
    (with_branch("DropsNearlyAll", OwnDrop(0.1, 0.1)), "MOD145"),
    (StridesEverywhere, "MOD146"),
    (DrawsEverything, "MOD148"),
]
FAILURES = {"MOD118", "MOD148"}

HEALTHY: list[type[nn.Module]] = [
    Classifier,
    ClassifierOfLowRank,
    ReturnsTheEmbedding,
    Net,
    InvertedResidual,
    TokensThenFeatures,
    patches_only(RelativeBias),
    patches_only(RoomForLargerMaps),
    vit(NormalisesItsWeightsAgain),
    vit(Attention),
    SineCode,
    PatchesOnly,
    NoCode,
    SeesTheBorder,
    ChannelsApart,
    CutByHand,
    MapAsTokens,
    Mixer,
    with_branch("NormByDeviation", OwnNorm()),  # one module that all builds share
    with_branch("DropsSome", OwnDrop(0.1, 0.9)),
    StridesStageByStage,
    DrawsAroundOne,
    BranchesStartAtZero,
    TrainedBefore,
]
