"""Small networks, each with one planted bug and the code that must find it; beside them healthy ones that look alike.

Every network takes (B, 3, 16, 16) and returns (B, 5) logits.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5


class Base(nn.Module):
    """A healthy residual network; the others change one thing."""

    def __init__(self, num_classes: int = CLASSES, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Linear(16 * width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.block(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


# -- planted bugs --------------------------------------------------------------------------------------------------


class RaisesInConstructor(Base):
    def __init__(self) -> None:
        super().__init__()
        raise RuntimeError("no such layer")


class SqueezesBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class FixedBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).view(2, -1))


class ViewInfersBatch(Base):
    """The feature size is wrong, and `view(-1, ...)` hides it by changing the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).view(-1, 64))


class WrongClasses(Base):
    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__(1000)


class NotPooled(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class CentresOverBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class GatesOverBatch(Base):
    """Squeezes over the batch too, in a branch that a norm of zeros switches off at the start."""

    squeezed: tuple[int, ...] = (0, 2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(8, 8, 1)
        self.last = nn.BatchNorm2d(8)
        nn.init.zeros_(self.last.weight)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(x)
        return x + self.last(y * self.gate(y.mean(self.squeezed, keepdim=True)).sigmoid())


class GatesEachSample(GatesOverBatch):
    squeezed = (2, 3)


class DropsBehindZeros(GatesEachSample):
    """Dropout in eval mode, in a branch that is switched off at the start."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.last(F.dropout(self.gate(self.block(x)), 0.3))


class NormalisesLogitsOverBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits / (logits.detach().abs().amax(0, keepdim=True) + 1e-3)


class SoftmaxOverBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(0)


class NoRunningStatistics(Base):
    def __init__(self) -> None:
        super().__init__()
        self.block[1] = nn.BatchNorm2d(8, track_running_stats=False)


class AttendsOverBatch(Base):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.features(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


class RunsAlongTheBatch(Base):
    """A recurrent layer without batch_first: a sample sees those before it, and the first one sees nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(48, 16)
        self.head = nn.Linear(16, CLASSES)
        self.stem = self.block = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.transpose(1, 2).flatten(2))[0][:, -1])


class RelativeToTheFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x[:1])


class MixesBatchAndChannels(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(self.pool(x.transpose(0, 1).reshape(x.shape)).flatten(1))


class FunctionalDropout(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.pool(self.features(x)).flatten(1), 0.3))


class DropoutMadeInForward(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.Dropout(0.3)(self.pool(self.features(x)).flatten(1)))


class NoiseInEval(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


class PlainTensorPosition(Base):
    def __init__(self) -> None:
        super().__init__()
        self.position = torch.randn(1, 3, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.position)


class NonPersistentBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("code", torch.randn(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.code)


class LayersInList(Base):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        for block in self.blocks:
            x = torch.relu(block(x))
        return x


class LayersInDict(LayersInList):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = {"a": nn.Conv2d(8, 8, 3, padding=1)}

    def features(self, x: Tensor) -> Tensor:
        return self.blocks["a"](Base.features(self, x))


class ParameterInList(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [nn.Parameter(torch.ones(1))]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scales[0])


class InputZeroed(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 0)


class EvalIgnored(Base):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.2)

    def train(self, mode: bool = True) -> Base:
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.pool(self.features(x)).flatten(1)))


class SoftmaxBeforeLoss(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


class SoftmaxLayer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(self.head, nn.Softmax(dim=-1))


class SigmoidBeforeLoss(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class ReluOnLogits(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class LearnsInEval(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem[0](x)
        norm = self.stem[1]
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)
        return self.head(self.pool(x).flatten(1))


class OverwritesInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class Prints(Base):
    def forward(self, x: Tensor) -> Tensor:
        print("shape", x.shape)
        return super().forward(x)


class SharedBlocks(Base):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1)] * 3)


class MomentumAsEps(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stem[1] = nn.BatchNorm2d(8, 0.1)


class KerasMomentum(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stem[1] = nn.BatchNorm2d(8, momentum=0.99)


class DetachedBlock(Base):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.block(x).detach()


class DetachedStem(Base):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x).detach()
        return x + self.block(x)


class NoGradBlock(Base):
    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        return x + self.block(x)


class UnusedLayer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(8, 8)


class AuxiliaryOffByOption(Base):
    """An auxiliary head that an option switches off."""

    def __init__(self, deep_supervision: bool = False) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.auxiliary = nn.Linear(self.head.in_features, CLASSES)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.pool(self.features(x)).flatten(1)
        if self.deep_supervision and self.auxiliary is not None:
            return self.head(x), self.auxiliary(x)
        return self.head(x)


class AuxiliaryInEvalOnly(Base):
    """The same, behind a test on the mode, and upside down: it never trains."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Conv2d(8, 8, 1)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        if not self.training:
            return x + 0.1 * self.extra(x)
        return x


class ZeroedBranch(Base):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + 0.0 * self.block(x)


class RewrappedOutput(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach().requires_grad_()


class DetachedSkip(Base):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x.detach() + self.block(x)


class ReducedInTraining(Base):
    """Wrong in train mode only, where a shape check in eval mode does not look."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits.mean(0) if self.training else logits


class DataSkip(Base):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x.data + self.block(x)


class FrozenLayer(Base):
    def __init__(self) -> None:
        super().__init__()
        for p in self.block.parameters():
            p.requires_grad = False


class AllFrozen(Base):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class LogOfZero(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(super().forward(x).relu())


class HugeHead(Base):
    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.head.weight, std=20.0)


class ConstantInit(Base):
    def __init__(self) -> None:
        super().__init__()
        for p in self.parameters():
            nn.init.zeros_(p)


class ModifiesForBackward(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).sigmoid()
        y = self.pool(x * x)
        x.add_(1)
        return self.head(y.flatten(1))


class ReturnsText(Base):
    def forward(self, x: Tensor) -> str:
        return "cat"


PLANTED: list[tuple[type[nn.Module], str]] = [
    (RaisesInConstructor, "MOD101"),
    (SqueezesBatch, "MOD102"),
    (FixedBatch, "MOD102"),
    (ViewInfersBatch, "MOD102"),
    (WrongClasses, "MOD102"),
    (NotPooled, "MOD102"),
    (GatesOverBatch, "MOD104"),
    (DropsBehindZeros, "MOD105"),
    (ReturnsText, "MOD102"),
    (CentresOverBatch, "MOD104"),
    (NormalisesLogitsOverBatch, "MOD104"),
    (SoftmaxOverBatch, "MOD104"),
    (NoRunningStatistics, "MOD104"),
    (AttendsOverBatch, "MOD104"),
    (RunsAlongTheBatch, "MOD104"),
    (RelativeToTheFirst, "MOD104"),
    (MixesBatchAndChannels, "MOD104"),
    (FunctionalDropout, "MOD105"),
    (DropoutMadeInForward, "MOD105"),
    (NoiseInEval, "MOD105"),
    (PlainTensorPosition, "MOD106"),
    (NonPersistentBuffer, "MOD106"),
    (LayersInList, "MOD107"),
    (LayersInDict, "MOD107"),
    (ParameterInList, "MOD107"),
    (InputZeroed, "MOD108"),
    (EvalIgnored, "MOD109"),
    (SoftmaxBeforeLoss, "MOD110"),
    (SoftmaxLayer, "MOD110"),
    (SigmoidBeforeLoss, "MOD110"),
    (ReluOnLogits, "MOD110"),
    (LearnsInEval, "MOD111"),
    (OverwritesInput, "MOD112"),
    (Prints, "MOD113"),
    (SharedBlocks, "MOD114"),
    (KerasMomentum, "MOD115"),
    (MomentumAsEps, "MOD115"),
    (DetachedBlock, "GRD301"),
    (DetachedStem, "GRD301"),
    (NoGradBlock, "GRD301"),
    (UnusedLayer, "GRD301"),
    (AuxiliaryInEvalOnly, "GRD301"),
    (ZeroedBranch, "GRD301"),
    (RewrappedOutput, "GRD301"),
    (ReducedInTraining, "GRD301"),
    (ConstantInit, "GRD301"),
    (ModifiesForBackward, "GRD301"),
    (LogOfZero, "GRD302"),
    (FrozenLayer, "GRD303"),
    (AllFrozen, "GRD303"),
    (DetachedSkip, "GRD304"),
    (DataSkip, "GRD304"),
    (HugeHead, "TRN401"),
    (InputZeroed, "TRN402"),
]
WARNINGS = {
    "SigmoidBeforeLoss",
    "ReluOnLogits",
    "OverwritesInput",
    "Prints",
    "SharedBlocks",
    "KerasMomentum",
    "MomentumAsEps",
    "HugeHead",
}


# -- healthy look-alikes -------------------------------------------------------------------------------------------


class ReshapesByBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).view(x.size(0), -1))


class CentresOverPixels(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean((2, 3), keepdim=True))


class AttendsOverTokens(Base):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.position = nn.Parameter(torch.randn(1, 256, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.features(x).flatten(2).transpose(1, 2) + self.position
        return self.head((tokens + self.attention(tokens, tokens, tokens)[0]).mean(1))


class DropoutEverywhere(Base):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.pool(self.features(x)).flatten(1), 0.3, self.training)
        return self.head(self.dropout(x))


class StochasticDepth(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop_rates = [x.item() for x in torch.linspace(0, 0.5, 2)]

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if not self.training:
            return x + self.block(x)
        keep = 1 - self.drop_rates[1]
        mask = torch.empty(x.shape[0], 1, 1, 1, device=x.device).bernoulli_(keep) / keep
        return x + mask * self.block(x)


class ZeroGamma(Base):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        )
        nn.init.zeros_(self.block[-1].weight)


class ZeroGammaThenRelu(ZeroGamma):
    """At the start the sum is exactly 0 in many places, which is the kink of the ReLU behind it."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x).relu()


class ZeroHead(Base):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class LayerScale(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1e-6 * torch.ones(8, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.gamma * self.block(x)


class LogSoftmax(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(super().forward(x), dim=1)


class SoftmaxInEvalOnly(Base):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.training else logits.softmax(1)


class ModuleListBlocks(Base):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.order = [self.blocks[0], self.blocks[1], self.blocks[2]]

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        for block in self.order:
            x = torch.relu(block(x))
        return x


class TiedWeights(Base):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.block[0].weight

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) + self.again(self.stem(x))


class FixedSinusoid(Base):
    def __init__(self) -> None:
        super().__init__()
        grid = torch.sin(torch.arange(16.0)).expand(1, 3, 16, 16).clone()
        self.position = nn.Parameter(grid, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.position)


class PretrainedBackbone(Base):
    """The frozen stem has the same values in every build, as if it came from a file."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        for p in self.stem.parameters():
            p.data = torch.randn(p.shape, generator=generator)
            p.requires_grad = False


class SavedBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("code", torch.randn(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.code)


class ConstantTensor(Base):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - self.mean.to(x))


class KeepsBatchNormInEval(Base):
    def train(self, mode: bool = True) -> Base:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class AuxiliaryHead(Base):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(8 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        early = self.stem(x)
        logits = self.head(self.pool(early + self.block(early)).flatten(1))
        return (logits, self.auxiliary(self.pool(early).flatten(1))) if self.training else logits


class ReturnsDict(Base):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.pool(self.features(x)).flatten(1)
        return {"features": features, "logits": self.head(features)}


class LazyHead(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(CLASSES)


class NumpyInside(Base):
    """Needs real numbers, so it cannot run on the meta device."""

    def forward(self, x: Tensor) -> Tensor:
        scale = float(x.detach().abs().mean(dim=(1, 2, 3)).numpy().max() * 0 + 1)
        return super().forward(x * scale)


class SpectralNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.block[0] = nn.utils.parametrizations.spectral_norm(self.block[0])


class WeightNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.block[0] = nn.utils.parametrizations.weight_norm(self.block[0])


class InPlaceInside(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))


class SumOfLogitsIsConstant(Base):
    """Centred logits: their plain sum has no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits - logits.mean(1, keepdim=True)


class Checkpointed(Base):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if not self.training:
            return x + self.block(x)
        return x + torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)


class ScalesPixelsItself(nn.Module):
    """Expects pixels from 0 to 255: of inputs with unit variance, little is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.block = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x / 255)).mean((2, 3)))


class StraightThrough(Base):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rounded = (4 * x).round() / 4
        return x + self.block(x + (rounded - x).detach())


class GroupNormNet(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stem[1], self.block[1] = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)


class Tanh(Base):
    """An old-fashioned network: saturating units, no normalisation, narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Tanh(), nn.AvgPool2d(2))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())


class RowsAsSequence(nn.Module):
    """Neither convolution nor a first linear layer says what the input is."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.rnn = nn.GRU(48, 16, batch_first=True)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.transpose(1, 2).flatten(2))[0][:, -1])


class DeepPlain(nn.Module):
    """Six layers without normalisation or skips, which memorise at a small learning rate only."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 16, 32, 32, 64, 64, 64]
        layers = [
            layer
            for i, (a, b) in enumerate(itertools.pairwise(widths))
            for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2) if i % 2 else nn.Identity())
        ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class FastPathEncoder(Base):
    """nn.TransformerEncoder computes by another route without gradients, and rounds differently there."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.features(x).flatten(2).transpose(1, 2)).mean(1))


class EpsOfTensorFlow(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stem[1] = nn.BatchNorm2d(8, eps=1e-3)


class SlowMomentum(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stem[1] = nn.BatchNorm2d(8, momentum=3e-4)


class WideLinear(nn.Module):
    """Its initial loss is far off if inputs and weights are drawn from the same random stream."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class CentredByRunningMean(Base):
    """Features less a centre that follows the batch in training, and through which no gradient is meant to go."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(8, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        if self.training:
            with torch.no_grad():
                self.centre.lerp_(features.mean(dim=(0, 2, 3))[:, None, None], 0.1)
        return features - self.centre


class HoldsNothing(Base):
    """A parameter without numbers, as options of zero prompts or classes leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(0, 12))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.prompts.sum()


HEALTHY: list[type[nn.Module]] = [
    HoldsNothing,
    AuxiliaryOffByOption,
    CentredByRunningMean,
    GatesEachSample,
    RowsAsSequence,
    DeepPlain,
    FastPathEncoder,
    SlowMomentum,
    EpsOfTensorFlow,
    WideLinear,
    Base,
    ReshapesByBatch,
    CentresOverPixels,
    AttendsOverTokens,
    DropoutEverywhere,
    StochasticDepth,
    ZeroGamma,
    ZeroGammaThenRelu,
    ZeroHead,
    LayerScale,
    LogSoftmax,
    SoftmaxInEvalOnly,
    ModuleListBlocks,
    TiedWeights,
    SavedBuffer,
    ConstantTensor,
    KeepsBatchNormInEval,
    AuxiliaryHead,
    ReturnsDict,
    LazyHead,
    NumpyInside,
    SpectralNorm,
    WeightNorm,
    InPlaceInside,
    SumOfLogitsIsConstant,
    Checkpointed,
    ScalesPixelsItself,
    StraightThrough,
    GroupNormNet,
    Tanh,
]
# Frozen with equal values in every build: a warning, because it may be forgotten, and silent when the spec lists it.
FROZEN_ON_PURPOSE: dict[type[nn.Module], str] = {FixedSinusoid: "position", PretrainedBackbone: "stem.*"}
