"""Vision Transformer: Dosovitskiy et al. 2021, "An image is worth 16x16 words"."""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Positions = Literal["learned", "none", "relative"]

# Ti, S: Touvron et al. 2021 (DeiT), table 1. B, L, H: table 1 of the paper; H is known with patches of 14 pixels.
# For 32x32: micro, mini (0.8, 2.7 million parameters). Positions that start at 0.02 are not heard in a short training.
SIZES = ("image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "position_std")
VARIANTS: dict[str, dict[str, Any]] = {
    "micro": dict(zip(SIZES, (32, 4, 128, 6, 4, 256, 0.5), strict=True)),
    "mini": dict(zip(SIZES, (32, 4, 192, 6, 3, 768, 0.5), strict=True)),
    "Ti": dict(zip(SIZES, (224, 16, 192, 12, 3, 768, 0.02), strict=True)),
    "S": dict(zip(SIZES, (224, 16, 384, 12, 6, 1536, 0.02), strict=True)),
    "B": dict(zip(SIZES, (224, 16, 768, 12, 12, 3072, 0.02), strict=True)),
    "L": dict(zip(SIZES, (224, 16, 1024, 24, 16, 4096, 0.02), strict=True)),
    "H": dict(zip(SIZES, (224, 14, 1280, 32, 16, 5120, 0.02), strict=True)),
}


def vit(num_classes: int = 1000, *, variant: str = "B", **changes: Any) -> "VisionTransformer":
    """A configuration of the paper by its letter, ViT-B/16 unless told otherwise; `changes` replace parts of it.

    Raises:
        ValueError: there is no such variant, or a size is impossible.
        TypeError: a change is no argument of `VisionTransformer`.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    return VisionTransformer(num_classes, **(VARIANTS[variant] | changes))


class PatchEmbedding(nn.Module):
    """Cut images into patches and project each: (B, C, H, W) -> (B, num_patches, dim).

    A convolution whose stride is its kernel does both; patches are in reading order.
    """

    def __init__(self, in_channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the patches."""
        return self.projection(x).flatten(2).transpose(1, 2)


class RelativePositionBias(nn.Module):
    """A learned number for each head and offset between two patches, added to the attention logits.

    Liu et al. 2021 (Swin), eq. 4; three more for [CLS] to patch, patch to [CLS] and itself (Bao et al. 2022, BEiT).

    Args:
        grid: patches in a row of the image.
        heads: attention heads.
    """

    index: Tensor

    def __init__(self, grid: int, heads: int) -> None:
        super().__init__()
        offsets = 2 * grid - 1
        self.table = nn.Parameter(torch.zeros(heads, offsets**2 + 3))
        row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
        row, column = row.flatten(), column.flatten()  # (N,) each, N = grid * grid
        between = (row[:, None] - row + grid - 1) * offsets + column[:, None] - column + grid - 1  # (N, N)
        index = torch.empty(grid**2 + 1, grid**2 + 1, dtype=torch.int64)
        index[1:, 1:] = between
        index[0, :], index[:, 0], index[0, 0] = offsets**2, offsets**2 + 1, offsets**2 + 2
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        """The bias (heads, 1 + N, 1 + N); rows are queries."""
        return self.table[:, self.index]


class Attention(nn.Module):
    """Multi-head self-attention over tokens: (B, N, dim) -> (B, N, dim). Appendix A of the paper.

    Args:
        dim: width of a token; a multiple of `heads`.
        heads: attention heads, each of width dim / heads.
        dropout: after the output projection.
        bias: relative position bias, if there is one.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, bias: RelativePositionBias | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.position_bias = bias

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, N, dim): each (B, heads, N, dim / heads)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        """Let the tokens exchange what they know."""
        query, key, value = self.split_heads(x)
        bias = self.position_bias() if self.position_bias else None  # (heads, N, N)
        # softmax(query @ key.T / sqrt(dim / heads) + bias) @ value, without the N x N matrix in memory
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # (B, heads, N, dim / heads)
        return self.dropout(self.projection(mixed.transpose(1, 2).flatten(2)))

    def attention_map(self, x: Tensor) -> Tensor:
        """How much each token attends to each: (B, heads, N, N), rows (queries) sum to 1; `forward` never forms it."""
        query, key, _ = self.split_heads(x)
        logits = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return (logits + self.position_bias() if self.position_bias else logits).softmax(-1)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block (eq. 2 and 3 of the paper): (B, N, dim) -> (B, N, dim)."""

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, dropout: float = 0.0, bias: RelativePositionBias | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)  # the epsilon of the paper's code
        self.attention = Attention(dim, heads, dropout, bias)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then the MLP, each with its norm before it and a residual connection around both."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches and a [CLS] token through an encoder; a linear head on what becomes of [CLS]. Defaults: ViT-B/16.

    With 1000 classes ViT-B/16 has 86,567,656 parameters. The head is the single linear layer that the paper fine-tunes
    with and that published counts include, without the hidden layer of its pre-training.

    Args:
        num_classes: number of logits.
        image_size, patch_size: height and width in pixels; the patch must divide the image.
        dim, depth, heads, mlp_dim: width of a token, number of blocks, of heads in each, hidden width of the MLPs.
        positions: "learned" embeddings added to the tokens, "none", or "relative" position bias in each block.
        dropout: share that is dropped after the position embeddings, attention and both layers of an MLP.
        position_std: deviation of fresh position embeddings.
        in_channels: channels of the input image.

    Raises:
        ValueError: a size is impossible.
    """

    position_embedding: nn.Parameter | None

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_dim: int = 3072,
        positions: Positions = "learned",
        dropout: float = 0.0,
        position_std: float = 0.02,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "image_size": image_size, "patch_size": patch_size, "dim": dim}
        sizes |= {"depth": depth, "heads": heads, "mlp_dim": mlp_dim, "in_channels": in_channels}
        _check(sizes, positions, dropout)
        self.image_shape = (in_channels, image_size, image_size)
        grid = image_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        learned = nn.Parameter(torch.empty(1, 1 + grid**2, dim)) if positions == "learned" else None
        self.register_parameter("position_embedding", learned)
        self.patches = PatchEmbedding(in_channels, patch_size, dim)
        self.dropout = nn.Dropout(dropout)
        biases = [RelativePositionBias(grid, heads) if positions == "relative" else None for _ in range(depth)]
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads, mlp_dim, dropout, bias) for bias in biases))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        init_as_the_paper(self, position_std)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images: (B, in_channels, image_size, image_size) -> (B, num_classes)."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"expected images (B, C, H, W) with C, H, W = {self.image_shape}, got {tuple(x.shape)}")
        x = self.patches(x)  # (B, N, dim)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, 1 + N, dim)
        if self.position_embedding is not None:
            x = x + self.position_embedding
        x = self.blocks(self.dropout(x))  # (B, 1 + N, dim)
        return self.head(self.norm(x)[:, 0])

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with two or more dimensions that are no weights of a layer."""
        names = {name for name, _ in self.named_parameters() if name.endswith("position_bias.table")}
        return names | {"cls_token", "position_embedding"}


@torch.no_grad()
def init_as_the_paper(model: VisionTransformer, position_std: float = 0.02) -> None:
    """Fresh weights as in the paper's code: github.com/google-research/vision_transformer, vit_jax/models_vit.py.

    Encoder matrices Xavier uniform, MLP biases normal with deviation 1e-6, patch projection truncated normal with
    variance 1 / fan-in, positions normal with deviation 0.02; [CLS], other biases and the head 0: all classes alike.
    """
    for block in model.blocks.modules():
        if isinstance(block, Attention):
            # Queries, keys and values are three square matrices there; here they are stacked.
            for matrix in (*block.qkv.weight.chunk(3), block.projection.weight):
                nn.init.xavier_uniform_(matrix)
            nn.init.zeros_(block.qkv.bias)
            nn.init.zeros_(block.projection.bias)
        elif isinstance(block, EncoderBlock):
            for layer in block.mlp:
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.normal_(layer.bias, std=1e-6)
    projection = model.patches.projection
    deviation = math.sqrt(1 / projection.weight[0].numel()) / 0.87962566  # that of a normal cut at 2 deviations
    nn.init.trunc_normal_(projection.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
    if model.position_embedding is not None:
        nn.init.normal_(model.position_embedding, std=position_std)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)


def _check(sizes: dict[str, int], positions: str, dropout: float) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for part, whole in (("patch_size", "image_size"), ("heads", "dim")):
        if sizes[whole] % sizes[part]:
            raise ValueError(f"{part} {sizes[part]} does not divide {whole} {sizes[whole]}")
    if positions not in get_args(Positions):
        raise ValueError(f"positions must be one of {', '.join(get_args(Positions))}, got {positions!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
