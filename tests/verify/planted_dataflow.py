"""Small networks with a bug in attention, skips, tables or stems, and healthy ones that look alike.

Every network takes (B, 3, 16, 16) and returns (B, 5) logits, unless its class says `side`.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, DIM, HEADS = 5, 24, 3
WIDTH = DIM // HEADS


class Attention(nn.Module):
    """Attention as most people write it; the others change one line."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> list[Tensor]:
        b, n, d = x.shape
        return [t.view(b, n, self.heads, d // self.heads).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1)]

    def merge(self, y: Tensor) -> Tensor:
        return self.project(y.transpose(1, 2).flatten(2))

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * self.scale).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.merge(self.weights(q, k) @ v)


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer with 16 patches and a class token."""

    attention: type[nn.Module] = Attention

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, 4, stride=4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, DIM))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, DIM))
        self.blocks = nn.ModuleList(Block(self.attention()) for _ in range(2))
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class PatchesByReshape(ViT):
    """(B, D, h, w) read as (B, N, D): a token holds one feature of many patches."""

    def embed(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).reshape(len(x), 16, DIM)
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position


class MixesPatchesFirst(ViT):
    """A layer over the tokens before the first block, on purpose."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__(num_classes)
        self.mix = nn.Linear(16, 16)

    def embed(self, x: Tensor) -> Tensor:
        x = self.mix(self.patches(x).flatten(2)).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position


def vit(attention: type[nn.Module]) -> type[nn.Module]:
    """The same network with another attention."""
    return type(f"ViTWith{attention.__name__}", (ViT,), {"attention": attention, "__module__": __name__})


class Net(nn.Module):
    """A small residual network; the others change one thing."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = self.make_block()
        self.head = nn.Linear(8, num_classes)

    def make_block(self) -> nn.Module:
        return Residual()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(x + y)


def net(block: type[nn.Module]) -> type[nn.Module]:
    """The residual network with another block."""
    return type(f"NetWith{block.__name__}", (Net,), {"make_block": lambda _: block(), "__module__": __name__})


# -- attention over the wrong axis -----------------------------------------------------------------------------------


class SoftmaxOverHeads(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * self.scale).softmax(1)


class SoftmaxOverQueries(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return F.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-2)


class SoftmaxOverQueriesByEinsum(Attention):
    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, WIDTH).unbind(2)
        scores = torch.einsum("bqhe,bkhe->bhqk", q / math.sqrt(WIDTH), k)
        weights = F.dropout(scores.softmax(2), 0.1, self.training)
        return self.project(torch.einsum("bhqk,bkhe->bqhe", weights, v).flatten(2))


class SoftmaxAfterMask(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = torch.matmul(q, k.permute(0, 1, 3, 2)).div_(WIDTH**0.5)
        mask = torch.zeros(q.shape[2], dtype=torch.bool)
        return scores.masked_fill(mask, -1e9).softmax(0)


class SoftmaxWithoutAxis(Attention):
    """The default of a softmax without `dim` is axis 0 for three axes, which is the batch here."""

    def __init__(self) -> None:
        super().__init__(heads=1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = torch.bmm(q, k.transpose(1, 2)) / DIM**0.5
        return self.project(nn.Softmax(dim=0)(scores) @ v)


class SumsOverQueries(Attention):
    """The weights are transposed once too often."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.merge(self.weights(q, k).transpose(-2, -1) @ v)


# -- the scale -------------------------------------------------------------------------------------------------------


class NotScaled(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1)


class ScaledUpsideDown(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * WIDTH**0.5).softmax(-1)


class ScaledByAllHeads(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return ((q @ k.transpose(-2, -1)) / DIM**0.5).softmax(-1)


class ScaledByNumberOfHeads(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * self.heads**-0.5).softmax(-1)


class ScaledTwice(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.merge(F.scaled_dot_product_attention(q * self.scale, k, v))


class ScaledAfterSoftmax(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) * self.scale


class ScaledByTensor(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.root = torch.sqrt(torch.FloatTensor([DIM]))

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / self.root).softmax(-1)


class NotScaledByEinsum(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = torch.einsum("...ie,...je->...ij", q, k).softmax(-1)
        return self.merge(torch.einsum("...ij,...je->...ie", weights, v))


class SharesTheScaleOfAllHeads(Attention):
    """Rotated queries, scaled before the rotation by the width of all heads."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        angle = torch.arange(q.shape[2])[:, None] * torch.ones(WIDTH)
        q, k = (t * angle.cos() + t.roll(WIDTH // 2, -1) * angle.sin() for t in (q * DIM**-0.5, k))
        return (q @ k.transpose(-2, -1)).softmax(-1)


class HeadsApart(nn.Module):
    """A module for each head, scaled by the width of the model."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(DIM, WIDTH, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            scores = self.query(x) @ self.key(x).transpose(1, 2) * x.shape[-1] ** -0.5
            return scores.softmax(-1) @ self.value(x)

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(self.Head() for _ in range(HEADS))
        self.project = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([head(x) for head in self.heads], dim=-1))


class UnusualScale(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * 0.1).softmax(-1)


# -- tokens that do not mix, or mix too much -------------------------------------------------------------------------


class AttendsOverHeads(Attention):
    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (t.view(b, n, self.heads, WIDTH) for t in self.qkv(x).chunk(3, dim=-1))
        return self.project(F.scaled_dot_product_attention(q, k, v).reshape(b, n, d))


class AttendsOverHeadsZeroInit(AttendsOverHeads):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.project.weight)


class SplitsHeadsByView(Attention):
    def split(self, x: Tensor) -> list[Tensor]:
        b, n, _ = x.shape
        return [t.reshape(b, self.heads, n, WIDTH) for t in self.qkv(x).chunk(3, dim=-1)]


class MergesHeadsByReshape(Attention):
    def merge(self, y: Tensor) -> Tensor:
        b, h, n, e = y.shape
        return self.project(y.reshape(b, n, h * e))


class MergesHeadsOfSdpa(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.project(F.scaled_dot_product_attention(q, k, v).contiguous().view(x.shape))


class KeysByView(Attention):
    """The keys are brought into shape by a view instead of a transpose."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        b, h, n, e = k.shape
        return (q @ k.reshape(b, h, e, n) * self.scale).softmax(-1)


# -- softmax over one element ----------------------------------------------------------------------------------------


class PoolsBySoftmaxOfOne(ViT):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(DIM, 1)
        del self.norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = F.softmax(self.score(x), dim=-1)
        return self.head((weights * x).mean(1))


class MapsBySoftmaxOfOne(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x * self.gate(x).softmax(1)).mean((2, 3)))


# -- where tensors come from -----------------------------------------------------------------------------------------


class PlainPosition(ViT):
    def __init__(self) -> None:
        super().__init__()
        del self.position
        self.position = torch.randn(1, 17, DIM)


class TrainablePlainPosition(ViT):
    def __init__(self) -> None:
        super().__init__()
        del self.position
        self.position = torch.zeros(1, 17, DIM, requires_grad=True)


class PlainProjectionInDict(Net):
    def __init__(self) -> None:
        super().__init__()
        self.tables = {"mix": torch.rand(8, 8)}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)) @ self.tables["mix"])


class RandomBufferPosition(ViT):
    def __init__(self) -> None:
        super().__init__()
        del self.position
        self.register_buffer("position", torch.randn(1, 17, DIM))


class LinearMadeInForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x)).mean((2, 3))
        return nn.Linear(8, CLASSES)(nn.GELU()(x))


class NormMadeInForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.LayerNorm(8)(self.block(self.stem(x)).mean((2, 3))))


class ParameterMadeInForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x)).mean((2, 3))
        return self.head(x * nn.Parameter(torch.ones(8)))


# -- blocks ----------------------------------------------------------------------------------------------------------


class ReluBeforeAndAfter(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(x + y)


class ReluTwice(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return x + self.bn2(self.conv2(self.relu(F.max_pool2d(y, 3, 1, 1))))


class OverwritesSkip(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.ReLU(inplace=True), self.conv1, nn.ReLU(inplace=True), self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + x


class OverwritesSkipOfPreactivation(OverwritesSkip):
    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.bn2(self.conv1(F.leaky_relu_(x)))))
        out += x
        return out


class OverwritesSkipBehindConvolution(Net):
    def make_block(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 1), OverwritesSkip())


class OverwritesSkipByMethod(Net):
    def make_block(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 1), OverwritesSkipOfPreactivation(), nn.Conv2d(8, 8, 1), OverwritesSkip())


class ImageNetStem(nn.Module):
    """The stem and the strides of a ResNet for 224 pixels, narrow."""

    side = 32

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3))
        )
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class WideStem(nn.Module):
    """One overlapping convolution that leaves a quarter of each side at once."""

    side = 32

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(2))
        )
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


PLANTED: list[tuple[type[nn.Module], str]] = [
    (vit(SoftmaxOverHeads), "MOD116"),
    (vit(SoftmaxOverQueries), "MOD116"),
    (vit(SoftmaxOverQueriesByEinsum), "MOD116"),
    (vit(SoftmaxAfterMask), "MOD116"),
    (vit(SoftmaxWithoutAxis), "MOD116"),
    (vit(SumsOverQueries), "MOD116"),
    (vit(NotScaled), "MOD117"),
    (vit(NotScaledByEinsum), "MOD117"),
    (vit(SharesTheScaleOfAllHeads), "MOD117"),
    (vit(ScaledUpsideDown), "MOD117"),
    (vit(ScaledByAllHeads), "MOD117"),
    (vit(ScaledByNumberOfHeads), "MOD117"),
    (vit(ScaledTwice), "MOD117"),
    (vit(ScaledAfterSoftmax), "MOD117"),
    (vit(ScaledByTensor), "MOD117"),
    (vit(HeadsApart), "MOD117"),
    (vit(UnusualScale), "MOD117"),
    (vit(AttendsOverHeads), "MOD118"),
    (vit(AttendsOverHeadsZeroInit), "MOD118"),
    (vit(SplitsHeadsByView), "MOD119"),
    (vit(MergesHeadsByReshape), "MOD119"),
    (vit(MergesHeadsOfSdpa), "MOD119"),
    (vit(KeysByView), "MOD119"),
    (PoolsBySoftmaxOfOne, "MOD120"),
    (MapsBySoftmaxOfOne, "MOD120"),
    (PlainPosition, "MOD121"),
    (TrainablePlainPosition, "MOD121"),
    (PlainProjectionInDict, "MOD121"),
    (net(ReluBeforeAndAfter), "MOD122"),
    (net(ReluTwice), "MOD122"),
    (OverwritesSkipBehindConvolution, "MOD123"),
    (OverwritesSkipByMethod, "MOD123"),
    (ImageNetStem, "MOD125"),
    (WideStem, "MOD125"),
    (PatchesByReshape, "MOD119"),
    (LinearMadeInForward, "MOD126"),
    (NormMadeInForward, "MOD126"),
    (ParameterMadeInForward, "MOD126"),
    (RandomBufferPosition, "MOD127"),
]
WARNINGS = {"MOD119", "MOD122", "MOD123", "MOD125", "MOD127"}
WARNED = {"ViTWithUnusualScale"}


class LibraryAttentionOverBatch(nn.Module):
    """`batch_first=True` is missing, so samples attend to samples: MOD104 finds that."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class DropoutMadeInForward(Attention):
    """A layer without parameters, made in forward, that is never in eval mode: MOD105 finds that."""

    def merge(self, y: Tensor) -> Tensor:
        return nn.Dropout(0.1)(super().merge(y))


class NotScaledOnMap(nn.Module):
    """A non-local block of one head without a scale, as some papers have it: at most a warning."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(8, 8, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = torch.bmm(q.transpose(1, 2), k).softmax(-1)
        return x + torch.bmm(v, weights.transpose(1, 2)).view_as(x)


class ScaledByWidth(Attention):
    """One over the width, as muP has it."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / WIDTH).softmax(-1)


ODD_BUT_LEGAL: list[type[nn.Module]] = [net(NotScaledOnMap), vit(ScaledByWidth)]


# -- healthy look-alikes ---------------------------------------------------------------------------------------------


class Sdpa(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.merge(F.scaled_dot_product_attention(*self.split(x)))


class GivenMask(nn.Module):
    """Attention that is told which tokens count, as for padded sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MaskedInner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x[..., 0] > x[..., 0].mean(1, keepdim=True))


class MaskedInner(Attention):
    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.merge(F.scaled_dot_product_attention(*self.split(x), attn_mask=keep[:, None, None]))


class SdpaWithOwnScale(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.merge(F.scaled_dot_product_attention(q * self.scale, k, v, scale=1.0))


class SplitScale(Attention):
    """d^-1/4 on the queries and on the keys."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        root = WIDTH**-0.25
        return ((q * root) @ (k * root).transpose(-2, -1)).softmax(-1)


class ByEinsum(Attention):
    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, self.heads, 3 * WIDTH).chunk(3, dim=-1)
        weights = (torch.einsum("bqhe,bkhe->bhqk", q, k) * self.scale).softmax(-1)
        return self.project(torch.einsum("bhqk,bkhe->bqhe", weights, v).reshape(b, n, DIM))


class KeysByQueries(Attention):
    """Scores are laid out (keys, queries), and so are softmax and sum."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = (k @ q.transpose(-2, -1) * self.scale).softmax(-2)
        return self.merge(weights.transpose(-2, -1) @ v)


class RenormalisedOverQueries(Attention):
    """As slot attention: softmax over the queries, then a weighted mean over the keys."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-2) + 1e-6
        return self.merge((weights / weights.sum(-1, keepdim=True)) @ v)


class ChannelAttention(Attention):
    """Cross-covariance attention: channels attend to channels, with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.transpose(-2, -1) for t in self.split(x))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return self.merge((weights @ v).transpose(-2, -1))


class ChannelAttentionByWidth(Attention):
    """Channels attend to channels under the scale of attention among tokens."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = (q.transpose(-2, -1) * self.scale @ k).softmax(-1)
        return self.merge((weights @ v.transpose(-2, -1)).transpose(-2, -1))


class Cosine(Attention):
    """Normalised queries and keys under a fixed temperature."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (10 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)


class NormalisedQueries(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (self.norm(q) @ self.norm(k).transpose(-2, -1)).softmax(-1)


class LearnedScale(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * self.log_scale.exp()).softmax(-1)


class ScaleInBuffer(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("root", torch.sqrt(torch.tensor(float(WIDTH))))

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / self.root).softmax(-1)


class RelativeBias(Attention):
    """Learned scores for pairs of places: the order of tokens matters on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(0.02 * torch.randn(HEADS, 17, 17))

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * self.scale + self.bias).softmax(-1)


class RelativeBiasByIndex(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(33, HEADS))
        place = torch.arange(17)
        self.register_buffer("index", place[:, None] - place[None, :] + 16)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        bias = self.table[self.index].permute(2, 0, 1)
        return (q @ k.transpose(-2, -1) * self.scale + bias).softmax(-1)


class Causal(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
        return (q @ k.transpose(-2, -1) * self.scale).masked_fill(future, float("-inf")).softmax(-1)


class CausalSdpa(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.merge(F.scaled_dot_product_attention(*self.split(x), is_causal=True))


class Rotary(Attention):
    """Scales first, then rotates pairs of features by an angle that grows with the place."""

    def rotated(self, t: Tensor) -> Tensor:
        angle = torch.arange(t.shape[2])[:, None] * 0.5 ** torch.arange(WIDTH // 2).repeat(2)
        first, second = t.chunk(2, dim=-1)
        return t * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (self.rotated(q * self.scale) @ self.rotated(k).transpose(-2, -1)).softmax(-1)


class ConvolvesValues(Attention):
    """A depthwise convolution over the map of tokens: order matters on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(DIM, DIM, 3, padding=1, groups=DIM)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.mix(x.transpose(1, 2)).transpose(1, 2)


class ClassTokenAsks(Attention):
    """Only the class token asks, as in the last layers of CaiT; the patches stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        token = self.merge(self.weights(q[:, :, :1], k) @ v)
        return torch.cat([token, x[:, 1:]], dim=1)


class ShortensKeys(Attention):
    """Keys and values are projected to a shorter sequence, with a weight for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.shorten = nn.Linear(17, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, *rest = self.split(x)
        k, v = (self.shorten(t.transpose(-2, -1)).transpose(-2, -1) for t in rest)
        return self.merge(self.weights(q, k) @ v)


class TalkingHeads(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = self.before((q @ k.transpose(-2, -1) * self.scale).permute(0, 2, 3, 1))
        return self.after(scores.softmax(-2)).permute(0, 3, 1, 2)


class ZeroInitProjection(Attention):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)


class LibraryAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class LibraryAttentionSequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.attention(x, x, x)[0].transpose(0, 1)


class SequenceFirst(nn.Module):
    """The module itself takes (tokens, batch, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Windows(Attention):
    """Four windows of four tokens; the class token stays alone."""

    def forward(self, x: Tensor) -> Tensor:
        b, _, d = x.shape
        windows = x[:, 1:].reshape(4 * b, 4, d)
        return torch.cat([x[:, :1], super().forward(windows).reshape(b, 16, d)], dim=1)


class WindowsOfOne(Windows):
    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        return Attention.forward(self, x.reshape(b * n, 1, d)).reshape(b, n, d) + x.mean(1, keepdim=True)


class LearnedMemory(Attention):
    """Tokens attend to learned memory, not to each other; another layer mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(1, 6, DIM))

    def forward(self, x: Tensor) -> Tensor:
        q, _, _ = self.split(x)
        _, k, v = self.split(self.memory)
        return self.merge(self.weights(q, k.expand(len(x), -1, -1, -1)) @ v.expand(len(x), -1, -1, -1))


class PoolsByAttention(ViT):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(DIM, 1)
        del self.norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head((self.score(x).softmax(1) * x).sum(1))


class LearnedQuery(ViT):
    """A learned token asks; its query is computed by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        scores = self.query(self.token).expand(len(x), -1, -1) @ x.transpose(1, 2) * DIM**-0.5
        return self.head((scores.softmax(-1) @ x)[:, 0])


class Encoder(ViT):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList([nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)])


class PostNormEncoder(ViT):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True)
        self.blocks = nn.ModuleList([nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)])


class NonLocal(nn.Module):
    """A non-local block on a feature map, with the usual scale; without a scale it would be a warning."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = (q.transpose(1, 2) @ k / math.sqrt(8)).softmax(-1)
        return x + self.gamma * (v @ weights.transpose(1, 2)).view_as(x)


class MixtureOfExperts(nn.Module):
    """A softmax over the scores of a linear layer whose weight is computed in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4, bias=False))
        self.experts = nn.Parameter(torch.randn(4, 8, 8) / 8**0.5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        weights = self.gate(tokens).softmax(-1)
        mixed = torch.einsum("bne,ecd,bnc->bnd", weights, self.experts, tokens)
        return x + mixed.transpose(1, 2).view_as(x)


class TokenMixer(ViT):
    """An MLP-Mixer: no attention at all."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(17, 17)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(1, 2)).transpose(1, 2)

    attention = Mixer


class Sinusoid(ViT):
    """A fixed table, alike in every build, as a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        del self.position
        angle = torch.arange(17.0)[:, None] * 100 ** (-torch.arange(0, DIM, 2) / DIM)
        self.position = torch.cat([angle.sin(), angle.cos()], dim=1)[None]


class CachedTable(ViT):
    """A table that the first pass makes and later ones reuse."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}

    def embed(self, x: Tensor) -> Tensor:
        x = super().embed(x)
        if 17 not in self.cache:
            self.cache[17] = self.position.detach() * 0 + torch.linspace(0, 1, 17 * DIM).view(1, 17, DIM)
        return x + self.cache[17]


class KeepsWeights(ViT):
    """Remembers its features for a plot; nothing reads them."""

    def embed(self, x: Tensor) -> Tensor:
        self.seen = super().embed(x)
        return self.seen


class TrainedBuffer(Net):
    """A codebook that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x)).mean((2, 3))
        if self.training:
            self.codes.lerp_(x.detach().T @ x.detach() / len(x), 0.01)
        return self.head(x + 0.1 * x @ self.codes)


class SpectralNormed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(8, CLASSES))


class HeadMadeInFirstPass(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(CLASSES)


class ActivationMadeInForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.Flatten()(nn.AdaptiveAvgPool2d(1)(nn.ReLU()(self.block[0](self.stem(x))))))

    def make_block(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3))


class InPlaceOfOwn(Residual):
    """In place, but always on what a normalisation has just made."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class Preactivation(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu_(self.bn1(x)))
        return x + self.conv2(F.relu_(self.bn2(y)))


class OverwritesWithoutSkip(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu_(self.bn1(self.conv1(x)))
        return y + self.bn2(self.conv2(y))


class HardSwish(Residual):
    """ReLU6 of a ReLU plus 3: the upper end is what it is for."""

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu6(x + 3) / 6
        return x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x * gate)))))


class Concatenates(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.bn1(self.conv1(x)))[:, :4], self.bn2(self.conv2(x))[:, 4:]], dim=1)
        return F.relu(y)


class LeNet(nn.Module):
    """Pools down to a small map step by step."""

    side = 32

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        sizes = [3, 8, 8, 8, 8, 8]
        layers = [
            layer
            for a, b in itertools.pairwise(sizes)
            for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class PatchPyramid(WideStem):
    """Patches of four pixels that do not overlap, halved twice, as pyramids of tokens do."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__(num_classes)
        self.stem[0] = nn.Conv2d(3, 8, 4, 4, bias=False)


class StridesInBody(ImageNetStem):
    """The stem for small pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())


class LargePicture(ImageNetStem):
    side = 96


class RandomFeatures(Net):
    """Random Fourier features of Rahimi & Recht 2007: a fixed projection, which is no embedding that was forgotten."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__(num_classes)
        self.register_buffer("projection", torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.block(self.stem(x)).mean((2, 3)) @ self.projection).cos())


class SpectrallyNormalised(Net):
    """Spectral norm by a hook, which keeps the weight as a plain tensor and its power iteration in buffers."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__(num_classes)
        self.stem[0] = nn.utils.spectral_norm(self.stem[0])
        self.head = nn.utils.spectral_norm(self.head)


HEALTHY: list[type[nn.Module]] = [
    ViT,
    Net,
    RandomFeatures,
    SpectrallyNormalised,
    *(
        vit(attention)
        for attention in (
            Sdpa,
            SdpaWithOwnScale,
            SplitScale,
            ByEinsum,
            KeysByQueries,
            GivenMask,
            RenormalisedOverQueries,
            ChannelAttention,
            ChannelAttentionByWidth,
            Cosine,
            NormalisedQueries,
            LearnedScale,
            ScaleInBuffer,
            RelativeBias,
            RelativeBiasByIndex,
            Causal,
            CausalSdpa,
            Rotary,
            ConvolvesValues,
            ClassTokenAsks,
            ShortensKeys,
            TalkingHeads,
            ZeroInitProjection,
            LibraryAttention,
            LibraryAttentionSequenceFirst,
            Windows,
            WindowsOfOne,
            LearnedMemory,
        )
    ),
    PoolsByAttention,
    LearnedQuery,
    Encoder,
    PostNormEncoder,
    net(NonLocal),
    net(MixtureOfExperts),
    TokenMixer,
    Sinusoid,
    CachedTable,
    KeepsWeights,
    TrainedBuffer,
    SpectralNormed,
    HeadMadeInFirstPass,
    ActivationMadeInForward,
    net(InPlaceOfOwn),
    net(Preactivation),
    net(OverwritesWithoutSkip),
    net(HardSwish),
    net(Concatenates),
    LeNet,
    StridesInBody,
    PatchPyramid,
    MixesPatchesFirst,
    LargePicture,
]
