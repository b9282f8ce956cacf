"""A batch of images as a PNG file, without any imaging library."""

from __future__ import annotations

import base64
import struct
import zlib

import torch
from torch import Tensor

MOST_IMAGES, COLUMNS, LARGEST_SIDE = 32, 8, 96


def contact_sheet(images: Tensor | None) -> str:
    """The first images (B, C, H, W), each stretched to the full range of brightness, as base64 of a PNG; or nothing."""
    if images is None or images.dim() != 4 or images.shape[1] not in (1, 3) or not images.shape[2] >= 4:
        return ""
    with torch.no_grad():
        x = images[:MOST_IMAGES].detach().float().cpu()
        step = max(1, -(-max(x.shape[2:]) // LARGEST_SIDE))
        x = x[:, :, ::step, ::step]
        low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
        x = ((x - low) / (high - low).clamp_min(1e-8) * 255).nan_to_num().to(torch.uint8).expand(-1, 3, -1, -1)
        count, _, height, width = x.shape
        rows = -(-count // COLUMNS)
        sheet = torch.full((rows * (height + 2), COLUMNS * (width + 2), 3), 255, dtype=torch.uint8)
        for i in range(count):
            top, left = (i // COLUMNS) * (height + 2) + 1, (i % COLUMNS) * (width + 2) + 1
            sheet[top : top + height, left : left + width] = x[i].permute(1, 2, 0)
    return base64.b64encode(_png(sheet)).decode("ascii")


def _png(pixels: Tensor) -> bytes:
    height, width, _ = pixels.shape
    raw = b"".join(b"\x00" + bytes(row.reshape(-1).tolist()) for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 6)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
