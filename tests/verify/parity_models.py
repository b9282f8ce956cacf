"""A plain ViT written by hand, and the mistakes that leave its parameter count as it is.

(B, 3, 32, 32) -> (B, 10); width 48, 4 heads, 2 blocks, patches of 8: 17 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM, HEADS, DEPTH, PATCH, CLASSES = 48, 4, 2, 8, 10


class Attention(nn.Module):
    """Separate projections; the parts that go wrong are methods."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.out = nn.Linear(DIM, DIM)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)

    def weights(self, scores: Tensor) -> Tensor:
        return (scores * (DIM // HEADS) ** -0.5).softmax(dim=-1)

    def merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        return self.out(self.merge(self.weights(q @ k.transpose(-2, -1)) @ v))


class ScaledByAllHeads(Attention):
    def weights(self, scores: Tensor) -> Tensor:
        return (scores * DIM**-0.5).softmax(dim=-1)


class SoftmaxOverQueries(Attention):
    def weights(self, scores: Tensor) -> Tensor:
        return (scores * (DIM // HEADS) ** -0.5).softmax(dim=-2)


class HeadsScrambled(Attention):
    def merge(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, DIM)


class HeadsSplitOff(Attention):
    """Splits tokens instead of features into heads."""

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), HEADS, -1, DIM // HEADS)


class QueriesFromValues(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.v(x)), self.split(self.k(x)), self.split(self.q(x))
        return self.out(self.merge(self.weights(q @ k.transpose(-2, -1)) @ v))


class KeysFirst(Attention):
    """The order of execution differs from that of the names, which is no mistake."""

    def forward(self, x: Tensor) -> Tensor:
        k, v, q = self.split(self.k(x)), self.split(self.v(x)), self.split(self.q(x))
        return self.out(self.merge(self.weights(q @ k.transpose(-2, -1)) @ v))


class FusedByHead(Attention):
    """Fused as (heads, 3, width): another order of rows, and the same function."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (HEADS, 3, -1)).permute(3, 0, 2, 1, 4)
        return self.out(self.merge(self.weights(q @ k.transpose(-2, -1)) @ v))


class LibraryAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Mlp(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(DIM, 4 * DIM), act or nn.GELU(), nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class TanhGelu(Mlp):
    def __init__(self) -> None:
        super().__init__(nn.GELU(approximate="tanh"))


class Relu(Mlp):
    def __init__(self) -> None:
        super().__init__(nn.ReLU())


class FunctionalRelu(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Block(nn.Module):
    def __init__(self, attention: type[nn.Module], mlp: type[nn.Module], eps: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(DIM, eps=eps), attention()
        self.norm2, self.mlp = nn.LayerNorm(DIM, eps=eps), mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNormBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class NoSkipBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Healthy; what is planted is handed to the constructor or overridden."""

    attention: type[nn.Module] = Attention
    mlp: type[nn.Module] = Mlp
    block: type[Block] = Block
    eps = 1e-6

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        # Registered last to first, so that registration says nothing about the order of execution.
        self.head = nn.Linear(DIM, num_classes)
        self.norm = nn.LayerNorm(DIM, eps=self.eps)
        self.blocks = nn.ModuleList(self.block(self.attention, self.mlp, self.eps) for _ in range(DEPTH))
        self.make_embedding()

    def make_embedding(self) -> None:
        self.position = nn.Parameter(0.02 * torch.randn(1 + (32 // PATCH) ** 2, DIM))
        self.class_token = nn.Parameter(torch.zeros(DIM))
        self.embed = nn.Conv2d(3, DIM, PATCH, PATCH)

    def patches(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2)  # (B, 16, DIM)

    def tokens(self, x: Tensor) -> Tensor:
        token = self.class_token.expand(len(x), 1, DIM)
        return torch.cat([token, self.patches(x)], dim=1) + self.position

    def pool(self, x: Tensor) -> Tensor:
        return self.norm(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x))


def vit(name: str, **attributes: object) -> type[ViT]:
    """A subclass of ViT with these attributes."""
    return type(name, (ViT,), attributes)


class LinearPatches(ViT):
    """Patches cut out and projected by a product, channels first or last."""

    last = False

    def make_embedding(self) -> None:
        super().make_embedding()
        self.embed = nn.Linear(3 * PATCH**2, DIM)

    def patches(self, x: Tensor) -> Tensor:
        x = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (B, C, rows, p, columns, p)
        order = (0, 2, 4, 3, 5, 1) if self.last else (0, 2, 4, 1, 3, 5)
        return self.embed(x.permute(order).flatten(3).flatten(1, 2))


class LinearPatchesChannelsLast(LinearPatches):
    last = True


class SeparateClassPosition(ViT):
    def make_embedding(self) -> None:
        super().make_embedding()
        self.position = nn.Parameter(0.02 * torch.randn(1, (32 // PATCH) ** 2, DIM))
        self.class_position = nn.Parameter(torch.zeros(1, 1, DIM))

    def tokens(self, x: Tensor) -> Tensor:
        token = self.class_token + self.class_position
        return torch.cat([token.expand(len(x), 1, DIM), self.patches(x) + self.position], dim=1)


class LastToken(ViT):
    def pool(self, x: Tensor) -> Tensor:
        return self.norm(x)[:, -1]


class MeanPooling(ViT):
    def pool(self, x: Tensor) -> Tensor:
        return self.norm(x).mean(dim=1)


class NoFinalNorm(ViT):
    """The norm is there and forward does not call it."""

    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0]


class ReturnsDict(ViT):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x.mean(), "logits": super().forward(x)}


class NoBias(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(4 * DIM, DIM, bias=False)


def timm_style(**kwargs: object) -> nn.Module:
    """The reference: fused projections, other names, another order of registration."""
    from timm.models.vision_transformer import VisionTransformer

    settings = {"img_size": 32, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    return VisionTransformer(**{**settings, "num_classes": CLASSES, **kwargs})


# model -> the module that must be named, and what its place in the reference is called
BUGS: dict[str, tuple[type[nn.Module], str]] = {
    "scaled by all heads": (vit("A1", attention=ScaledByAllHeads), "blocks.0.attention"),
    "softmax over queries": (vit("A2", attention=SoftmaxOverQueries), "blocks.0.attention"),
    "heads scrambled": (vit("A3", attention=HeadsScrambled), "blocks.0.attention"),
    "tokens as heads": (vit("A4", attention=HeadsSplitOff), "blocks.0.attention"),
    "queries from values": (vit("A5", attention=QueriesFromValues), "blocks.0.attention"),
    "tanh GELU": (vit("M1", mlp=TanhGelu), "blocks.0.mlp.act"),
    "ReLU": (vit("M2", mlp=Relu), "blocks.0.mlp.act"),
    "functional ReLU": (vit("M3", mlp=FunctionalRelu), "blocks.0.mlp"),
    "post-norm": (vit("B1", block=PostNormBlock), "blocks.0"),
    "skip left out": (vit("B2", block=NoSkipBlock), "blocks.0"),
    "last token": (LastToken, ""),
    "mean pooling": (MeanPooling, ""),
}
HEALTHY: dict[str, type[nn.Module]] = {
    "separate projections": ViT,
    "keys first": vit("H1", attention=KeysFirst),
    "fused by head": vit("H2", attention=FusedByHead),
    "library attention": vit("H3", attention=LibraryAttention),
    "linear patches": LinearPatches,
    "linear patches, channels last": LinearPatchesChannelsLast,
    "separate position of the class token": SeparateClassPosition,
    "returns a dict": ReturnsDict,
}
OTHER_STRUCTURE: dict[str, tuple[type[nn.Module], str]] = {
    "final norm not called": (NoFinalNorm, "norm.weight"),
    "no bias": (vit("S1", mlp=NoBias), "blocks.0.mlp.fc2.bias"),
}
EPSILON = vit("E1", eps=1e-5)
