"""Whether the tokens of a vision transformer are its patches, each whole and by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from verify.tokens import received

TOKENS, FEATURES = 2, 12
# Elements of one token that come from so many different patches are no accident of a padded or shifted patch.
DIFFERENT = 3


def scrambled_patches(model: nn.Module, block: str, images: Tensor, patch: int) -> int:
    """Of how many patches a token is put together, though each of its elements comes from one patch alone.

    A view that fits in size hands token j the same feature of many patches, instead of all features of patch j. In a
    network that mixes patches on purpose, an element depends on many of them, and nothing is claimed.

    Args:
        model: in eval mode.
        block: name of the module whose first argument is the sequence (B, N, D).
        images: (B, C, H, W).
        patch: height and width of a patch, in pixels.

    Returns:
        The number of patches; 1 where tokens are whole, 0 where it cannot be told.
    """
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        sequence = received(model, block, leaf)
    if sequence is None or not sequence.requires_grad or sequence.dim() != 3 or sequence.shape[1] < 4:
        return 0
    counts = []
    tokens = torch.linspace(1, sequence.shape[1] - 1, TOKENS + 2).long().tolist()[1:-1]
    for token in tokens:
        sources = [_sources(sequence[0, token, d], leaf, patch) for d in _spread(sequence.shape[2])]
        if any(len(found) != 1 for found in sources):
            return 0
        counts.append(len(set().union(*sources)))
        if counts == [1]:
            return 1
    return min(counts, default=0)


def _spread(features: int) -> list[int]:
    return torch.linspace(0, features - 1, min(FEATURES, features)).long().tolist()


def _sources(element: Tensor, leaf: Tensor, patch: int) -> set[tuple[int, int]]:
    """Rows and columns of the patches of the first image that an element depends on."""
    (gradient,) = torch.autograd.grad(element, leaf, retain_graph=True)
    rows, columns = gradient[0].abs().sum(dim=0).nonzero(as_tuple=True)
    return set(zip((rows // patch).tolist(), (columns // patch).tolist(), strict=True))
