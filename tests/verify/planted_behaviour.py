"""Small networks that read from the wrong place, throw work away or leave tensors behind, and healthy ones that look
alike.

Every network takes (B, 3, 16, 16) and returns (B, 5) logits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.verify.planted import Base
from tests.verify.planted_dataflow import CLASSES, DIM, Attention, CausalSdpa, LibraryAttention, ViT, vit

TOKENS = 16

# -- read from the wrong place ---------------------------------------------------------------------------------------


class ReadsAPatch(ViT):
    """The class token stands first, and the head reads the last token."""

    read = -1

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, self.read])


class ReadsTheClassToken(ReadsAPatch):
    read = 0


class CausalReadsTheLast(ReadsAPatch):
    """As a language model would: the last token has seen all, the first one nothing."""

    attention = CausalSdpa


class ReadsACorner(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[:, :, 0, 0])


class ReadsTheMiddle(ReadsACorner):
    """A window around the pixel that is to be classified."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x))[:, :, 8, 8])


class ReadsTheMaximum(ReadsACorner):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).amax((2, 3)))


# -- tokens that stay apart ------------------------------------------------------------------------------------------


class MixerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(TOKENS), nn.LayerNorm(TOKENS)
        self.places, self.features = nn.Linear(TOKENS, TOKENS), nn.Linear(TOKENS, TOKENS)

    def mix(self, x: Tensor) -> Tensor:
        return self.places(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.gelu(self.mix(self.norm1(x)))
        return x + F.gelu(self.features(self.norm2(x)))


class MixesFeaturesTwice(MixerBlock):
    def mix(self, x: Tensor) -> Tensor:
        return self.places(x)


class Mixer(nn.Module):
    """As many tokens as features, so that a forgotten transposition runs."""

    block: type[nn.Module] = MixerBlock

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, TOKENS, 4, stride=4)
        self.blocks = nn.Sequential(self.block(), self.block())
        self.head = nn.Linear(TOKENS, CLASSES)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class MixerWithoutTransposing(Mixer):
    block = MixesFeaturesTwice


class AddsInPlace(MixerBlock):
    """What the block received is overwritten, so that nothing is known of it."""

    def forward(self, x: Tensor) -> Tensor:
        x += F.gelu(self.mix(self.norm1(x.clone())))
        x += F.gelu(self.features(self.norm2(x.clone())))
        return x


class ResidualInPlace(Mixer):
    block = AddsInPlace


class OneBlockForEachPatch(Mixer):
    """A bag of patches with a single layer behind it: no network that should mix them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(MixesFeaturesTwice())


class ClassTokenFromPatches(ViT):
    """The head reads a token that is a mean of patches."""

    def __init__(self) -> None:
        super().__init__()
        del self.token

    def embed(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.position

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


# -- tokens that are no windows --------------------------------------------------------------------------------------


class StripsOfPixels(ViT):
    """Patches by a reshape without a permutation: pieces of rows, of one channel each."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(48, DIM)

    def cut(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 3, 4, 4, 4, 4).reshape(len(x), 16, 48)

    def embed(self, x: Tensor) -> Tensor:
        x = self.patches(self.cut(x))
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position


class CombsOfPixels(StripsOfPixels):
    """Height split as (p, h / p): every fourth row and column."""

    def cut(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 3, 4, 4, 4, 4).permute(0, 3, 5, 1, 2, 4).reshape(len(x), 16, 48)


class CutByHand(StripsOfPixels):
    def cut(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(len(x), 16, 48)


class RowsAreTokens(StripsOfPixels):
    """Each token is a row of the picture, all channels of it."""

    def cut(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(len(x), 16, 48)


class ChannelsApart(ViT):
    """A token for each patch of each channel, as in ChannelViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, DIM, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 49, DIM))

    def embed(self, x: Tensor) -> Tensor:
        x = self.patches(x.reshape(-1, 1, 16, 16)).flatten(2).transpose(1, 2).reshape(len(x), 48, DIM)
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position


class MapAsTokens(ViT):
    """Convolutions and a pooling make the map, and its places become tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(3, DIM, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(DIM, DIM, 1), nn.MaxPool2d(2)
        )


class MapReshaped(MapAsTokens):
    """(B, D, h, w) read as (B, h * w, D), behind overlapping windows."""

    def embed(self, x: Tensor) -> Tensor:
        x = self.patches(x).reshape(len(x), 16, DIM)
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position


# -- left behind, made late ------------------------------------------------------------------------------------------


class PlainMean(Base):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - self.mean)


class PlainLayerScale(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = 1e-4 * torch.ones(8, 1, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.gamma * self.block(x)


class MovesItsMean(PlainMean):
    def forward(self, x: Tensor) -> Tensor:
        return Base.forward(self, x - self.mean.to(x))


class BufferedMean(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), persistent=False)
        self.factor = torch.tensor(0.5)  # one number without a dimension may stay where it is

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) * self.factor)


class CachesATable(Base):
    """Made in the first pass, on the device of the input."""

    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(-1, 1, 16, device=x.device).expand(16, 16)
        return super().forward(x + self.table)


class HeadMadeLate(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x)).flatten(1)
        if self.head is None:
            self.head = nn.Linear(x.shape[1], CLASSES).to(x.device)
        return self.head(x)


class LazyHead(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(CLASSES)


# -- attention -------------------------------------------------------------------------------------------------------


class DropsScores(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return self.drop(q @ k.transpose(-2, -1) * self.scale).softmax(-1)


class DropsScoresThenMasks(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = F.dropout(torch.einsum("bhid,bhjd->bhij", q, k) * self.scale, 0.1, self.training)
        mask = torch.zeros(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        return F.softmax(scores.masked_fill(mask, float("-inf")), dim=-1)


class DropsWeights(DropsScores):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return self.drop((q @ k.transpose(-2, -1) * self.scale).softmax(-1))


class DropsNothing(DropsScores):
    """A rate of 0: the place does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.0)


class DropsBeforeAttentionPooling(ViT):
    """Dropout, a layer and a softmax over tokens: scores of a layer, no product of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.drop = nn.Linear(DIM, 1), nn.Dropout(0.1)
        del self.norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head((x * self.drop(self.score(x)).softmax(1)).sum(1))


# -- rounded ---------------------------------------------------------------------------------------------------------


class CastsItsInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((20 * x).to(torch.int32).float() / 20)


class PreparesWithoutGradient(Base):
    """The images are prepared under no_grad, which rounds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 0.1)
        return super().forward(x)


class LooksPixelsUp(Base):
    """Grey values are classes with an embedding each."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Embedding(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        index = (8 * x.mean(1) + 16).long().clamp(0, 31)
        return super().forward(self.colours(index).permute(0, 3, 1, 2))


# -- equal rows ------------------------------------------------------------------------------------------------------


class EqualQueries(ViT):
    """Learned queries that all start at zero, and so stay equal."""

    start = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(self.start * torch.randn(1, 6, DIM))
        self.ask = nn.MultiheadAttention(DIM, 3, batch_first=True)
        del self.norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ask(self.queries.expand(len(x), -1, -1), x, x)[0].mean(1))


class DifferentQueries(EqualQueries):
    start = 0.02


class EqualUnits(Base):
    """A hidden layer that starts at one constant: all of its units are one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(128, 16)
        self.head = nn.Linear(16, CLASSES)
        for p in (self.hidden.weight, self.head.weight):
            nn.init.constant_(p, 0.01)
        nn.init.zeros_(self.hidden.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.pool(self.features(x)).flatten(1)).relu())


class ZeroPosition(ViT):
    """Zeros that the first step tells apart."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.position)
        nn.init.zeros_(self.head.weight)


# -- thrown away -----------------------------------------------------------------------------------------------------


class FeedsEachStepTheSame(Base):
    """A shared block in a loop, of which only the last round counts."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in range(3):
            y = self.block(x + step)
        return y


class FeedsOn(FeedsEachStepTheSame):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in range(3):
            x = self.block(x + step)
        return x


class HeadForEachRound(FeedsOn):
    """A head after every round; eval mode returns the last one alone."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.stem(x)
        outputs = []
        for _ in range(3):
            x = self.block(x)
            outputs.append(self.head(self.pool(x).flatten(1)))
        return tuple(outputs[::-1]) if self.training else outputs[-1]


@dataclass
class Answer:
    """What a network says beside its logits."""

    logits: Tensor
    features: list[Tensor]


class ReturnsFeatures(FeedsEachStepTheSame):
    """The rounds that do not lead to the logits are returned as well."""

    def forward(self, x: Tensor) -> Answer:
        x = self.stem(x)
        rounds = [self.block(x + step) for step in range(3)]
        return Answer(self.head(self.pool(rounds[-1]).flatten(1)), rounds)


class WarmsUpWithoutGradient(FeedsOn):
    """A fixed point is approached without a gradient, and only the last step has one."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        with torch.no_grad():
            y = self.block(self.block(x))
        return self.block(x + y)


# -- eval mode -------------------------------------------------------------------------------------------------------


class Fused(Base):
    """A 3x3 and a 1x1 convolution that are one in eval mode."""

    padding = (1, 1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False)
        del self.block

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            return self.wide(x) + self.point(x)
        kernel = self.wide.weight + F.pad(self.point.weight, self.padding)
        return F.conv2d(x, kernel, self.wide.bias, padding=1)


class FusedIntoTheCorner(Fused):
    padding = (0, 2, 0, 2)


class SkipsInEval(Base):
    """A branch that eval mode leaves out."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.block(x) if self.training else x


class DistilledHeads(Base):
    """Two heads in train mode, their mean in eval mode, as in DeiT."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.pool(self.features(x)).flatten(1)
        first, second = self.head(x), self.second(x)
        return (first, second) if self.training else (first + second) / 2


class UnscaledStochasticDepth(Base):
    """A branch that is kept with a probability, and scaled by it in eval mode."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            return x + self.block(x) if random.random() < 0.9 else x
        return x + 0.9 * self.block(x)


class OwnBatchNorm(Base):
    """Batch statistics in train mode, running ones in eval mode, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(8, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        if self.training:
            mean = x.mean((0, 2, 3))[:, None, None]
            self.centre.lerp_(mean.detach(), 0.1)
            return x - mean
        return x - self.centre


class SoftmaxInEval(Base):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.training else (logits / 2).softmax(1)


class SkipsSeldomInEval(Base):
    """Skips a branch once in ten passes, by Python's generator: two passes mostly agree."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x if random.random() > 0.9 else x + self.block(x)


# -- inputs that nobody gives ----------------------------------------------------------------------------------------


class OptionalMetadata(Base):
    """Numbers of the camera, zeros where they are unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata = nn.Linear(4, 128)

    def forward(self, x: Tensor, metadata: Tensor | None = None) -> Tensor:
        if metadata is None:
            metadata = x.new_zeros(len(x), 4)
        return self.head(self.pool(self.features(x)).flatten(1) + self.metadata(metadata))


class AlwaysZeros(OptionalMetadata):
    """The same layer in a model that nobody can give anything."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1) + self.metadata(x.new_zeros(len(x), 4)))


PLANTED: list[tuple[type[nn.Module], str]] = [
    (ReadsAPatch, "MOD128"),
    (ReadsACorner, "MOD128"),
    (MixerWithoutTransposing, "MOD129"),
    (vit(CausalSdpa), "MOD130"),
    (StripsOfPixels, "MOD119"),
    (CombsOfPixels, "MOD119"),
    (MapReshaped, "MOD119"),
    (PlainMean, "MOD134"),
    (PlainLayerScale, "MOD134"),
    (HeadMadeLate, "MOD135"),
    (vit(DropsScores), "MOD136"),
    (vit(DropsScoresThenMasks), "MOD136"),
    (CastsItsInput, "MOD137"),
    (EqualQueries, "MOD138"),
    (EqualUnits, "MOD138"),
    (FeedsEachStepTheSame, "MOD139"),
    (FusedIntoTheCorner, "MOD140"),
    (SkipsInEval, "MOD140"),
    (SkipsSeldomInEval, "MOD105"),
    (AlwaysZeros, "GRD301"),
]
FAILURES = {"MOD105", "MOD135", "GRD301"}

HEALTHY: list[type[nn.Module]] = [
    Base,
    ViT,
    Mixer,
    ReadsTheClassToken,
    CausalReadsTheLast,
    ReadsTheMiddle,
    ReadsTheMaximum,
    ResidualInPlace,
    OneBlockForEachPatch,
    ClassTokenFromPatches,
    CutByHand,
    RowsAreTokens,
    ChannelsApart,
    MapAsTokens,
    MovesItsMean,
    BufferedMean,
    CachesATable,
    LazyHead,
    vit(DropsWeights),
    vit(DropsNothing),
    vit(LibraryAttention),
    DropsBeforeAttentionPooling,
    PreparesWithoutGradient,
    LooksPixelsUp,
    DifferentQueries,
    ZeroPosition,
    FeedsOn,
    HeadForEachRound,
    ReturnsFeatures,
    WarmsUpWithoutGradient,
    Fused,
    DistilledHeads,
    UnscaledStochasticDepth,
    OwnBatchNorm,
    SoftmaxInEval,
    OptionalMetadata,
]
