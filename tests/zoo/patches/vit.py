"""Bugs and healthy variations of `vit`."""

from ..model import Patches

patches = Patches("vit", "model.py")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

SCALE = "self.scale = (dim // heads) ** -0.5"
MERGE = "x = (weights @ v).transpose(1, 2).reshape(b, n, d)"
BACKWARD = "        (loss / window).backward()\n"
UPDATE_IF = "        if (step + 1) % ACCUMULATE == 0 or step + 1 == len(loader):\n"
POSITIONS = "self.pos_embed = nn.Parameter(0.02 * torch.randn(1, num_patches + 1, dim))"
HEAD = "        return self.head(self.norm(x)[:, 0])\n"
CLIP = "            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"

BUGS = [
    # Attention
    bug("attention-softmax-over-heads", "M08", "MOD116", edit("scores.softmax(dim=-1)", "scores.softmax(dim=1)")),
    bug("attention-softmax-over-queries", "M08", "MOD116", edit("scores.softmax(dim=-1)", "scores.softmax(dim=2)")),
    bug("attention-without-scale", "M10", "MOD117", edit(" * self.scale", "")),
    bug("attention-scale-inverted", "M10", "MOD117", edit(SCALE, SCALE.replace("-0.5", "0.5"))),
    bug("attention-scale-of-the-model-width", "M11", "MOD117", edit(SCALE, "self.scale = dim**-0.5")),
    bug(
        "attention-scaled-twice",
        "M47",
        "MOD117",
        edit("        scores = (q", "        q = q * self.scale\n        scores = (q"),
    ),
    bug("heads-merged-without-transpose", "M12", "MOD119", edit(MERGE, MERGE.replace(".transpose(1, 2)", ""))),
    bug(
        "heads-split-by-view",
        "M13",
        "MOD119",
        edit(
            "        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads)\n"
            "        q, k, v = qkv.permute(2, 0, 3, 1, 4)",
            "        q, k, v = self.qkv(x).reshape(b, n, 3, d).unbind(2)\n"
            "        q, k, v = (t.reshape(b, self.heads, n, d // self.heads) for t in (q, k, v))",
        ),
    ),
    bug(
        "attention-over-heads-not-tokens",
        "M46",
        "MOD118",
        edit("qkv.permute(2, 0, 3, 1, 4)", "qkv.permute(2, 0, 1, 3, 4)"),
        edit(MERGE, MERGE.replace(".transpose(1, 2)", "")),
    ),
    bug(
        "attention-module-over-the-batch",
        "M14",
        "MOD104 MOD118 GRD301 MOD108",
        edit("self.attn = Attention(dim, heads)", "self.attn = nn.MultiheadAttention(dim, heads)"),
        edit(
            "        x = x + self.attn(self.norm1(x))\n",
            "        normed = self.norm1(x)\n"
            "        x = x + self.attn(normed, normed, normed, need_weights=False)[0]\n",
        ),
    ),
    bug(
        "attention-weights-of-one",
        "M09",
        "MOD120 MOD116 MOD118",
        edit("scores = (q @ k.transpose(-2, -1)) * self.scale", "scores = (q * k).sum(-1, keepdim=True) * self.scale"),
        edit("(weights @ v)", "(weights * v)"),
    ),
    # Tokens and positions
    bug(
        "positions-in-a-plain-tensor",
        "M16",
        "MOD121 MOD106",
        edit(POSITIONS, "self.pos_embed = 0.02 * torch.randn(1, num_patches + 1, dim)"),
    ),
    bug(
        "positions-in-a-random-buffer",
        "M16",
        "MOD127",
        edit(POSITIONS, 'self.register_buffer("pos_embed", 0.02 * torch.randn(1, num_patches + 1, dim))'),
    ),
    bug(
        "positions-never-added",
        "M18",
        "GRD301 GRD305",
        edit("torch.cat([cls_token, x], dim=1) + self.pos_embed", "torch.cat([cls_token, x], dim=1)"),
    ),
    bug(
        "tokens-of-the-batch-mixed",
        "M39",
        "MOD104",
        edit(
            "        return self.head(self.norm(x)[:, 0])\n", "        x = x.transpose(0, 1).reshape(x.shape)\n" + HEAD
        ),
    ),
    bug(
        "patches-reshaped-not-transposed",
        "M39",
        "MOD119 DAT211",
        edit(
            ".flatten(2).transpose(1, 2)  # (B, N, D)", ".flatten(2).reshape(x.shape[0], -1, self.cls_token.shape[-1])"
        ),
    ),
    bug(
        "skip-detached-in-the-block",
        "M03",
        "GRD304",
        edit("        x = x + self.attn(self.norm1(x))\n", "        x = x.detach() + self.attn(self.norm1(x))\n"),
    ),
    bug(
        "block-shared-by-all-layers",
        "M20",
        "MOD114",
        edit(
            "nn.ModuleList([Block(dim, heads, mlp_ratio=2, drop=drop) for _ in range(depth)])",
            "nn.ModuleList([Block(dim, heads, mlp_ratio=2, drop=drop)] * depth)",
        ),
    ),
    bug(
        "blocks-in-a-python-list",
        "M01",
        "MOD107 OPT701 GRD305",
        edit(
            "nn.ModuleList([Block(dim, heads, mlp_ratio=2, drop=drop) for _ in range(depth)])",
            "[Block(dim, heads, mlp_ratio=2, drop=drop) for _ in range(depth)]",
        ),
    ),
    bug(
        "softmax-at-the-head",
        "M43",
        "LOS901 MOD110",
        edit(HEAD, HEAD.replace("self.head(self.norm(x)[:, 0])", "self.head(self.norm(x)[:, 0]).softmax(dim=-1)")),
    ),
    bug(
        "mask-token-unused",
        "M02",
        "GRD301 GRD305",
        edit(
            "        self.norm = nn.LayerNorm(dim)\n        self.head",
            "        self.mask_token = nn.Parameter(torch.randn(1, 1, dim))\n"
            "        self.norm = nn.LayerNorm(dim)\n        self.head",
        ),
    ),
    # Accumulation
    bug("accumulated-loss-not-divided", "T03", "TRN410", edit(BACKWARD, "        loss.backward()\n", "train.py")),
    bug(
        "accumulation-tail-dropped",
        "T04",
        "TRN411",
        edit(UPDATE_IF, "        if (step + 1) % ACCUMULATE == 0:\n", "train.py"),
    ),
    bug(
        "schedule-stepped-per-micro-batch",
        "T05",
        "LRS802 LRS803",
        edit("            scheduler.step()\n", "", "train.py"),
        edit(BACKWARD, BACKWARD + "        scheduler.step()\n", "train.py"),
    ),
    bug(
        "clip-per-micro-batch",
        "T02",
        "TRN408",
        edit(CLIP, "", "train.py"),
        edit(BACKWARD, BACKWARD + CLIP.replace("            ", "        "), "train.py"),
    ),
    bug(
        "zero-grad-per-micro-batch",
        "O12",
        "TRN404 TRN411",
        edit(BACKWARD, "        optimizer.zero_grad()\n" + BACKWARD, "train.py"),
    ),
    bug(
        "accumulation-never-zeroed",
        "O11",
        "TRN403",
        edit(
            "            optimizer.step()\n            optimizer.zero_grad()\n",
            "            optimizer.step()\n",
            "train.py",
        ),
    ),
]

HEALTHY = [
    healthy(
        "gradient-checkpointing",
        "activations are computed again in the backward pass",
        edit(
            "            x = block(x)\n",
            "            x = checkpoint(block, x, use_reentrant=False) if self.training else block(x)\n",
        ),
        edit("import torch.nn as nn\n", "import torch.nn as nn\nfrom torch.utils.checkpoint import checkpoint\n"),
    ),
    healthy(
        "layer-scale",
        "each branch starts almost switched off",
        edit(
            "        x = x + self.attn(self.norm1(x))\n        return x + self.mlp(self.norm2(x))\n",
            "        x = x + self.gamma1 * self.attn(self.norm1(x))\n"
            "        return x + self.gamma2 * self.mlp(self.norm2(x))\n",
        ),
        edit(
            "        self.norm2 = nn.LayerNorm(dim)\n",
            "        self.norm2 = nn.LayerNorm(dim)\n        self.gamma1 = nn.Parameter(1e-3 * torch.ones(dim))\n"
            "        self.gamma2 = nn.Parameter(1e-3 * torch.ones(dim))\n",
        ),
    ),
    healthy(
        "stochastic-depth",
        "whole branches are dropped for single samples in training",
        edit(
            "        return x + self.mlp(self.norm2(x))\n",
            "        return x + self.drop_path(self.mlp(self.norm2(x)))\n\n"
            "    def drop_path(self, x, rate=0.2):\n        if not self.training:\n            return x\n"
            "        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= rate\n"
            "        return x * kept / (1 - rate)\n",
        ),
    ),
    healthy(
        "zero-init-head-and-class-token",
        "as in torchvision's vision transformer",
        edit(
            "        nn.init.trunc_normal_(self.cls_token, std=0.02)\n",
            "        nn.init.zeros_(self.head.weight)\n        nn.init.zeros_(self.head.bias)\n",
        ),
    ),
    healthy(
        "scale-split-between-queries-and-keys",
        "d^-1/4 on each of them makes d^-1/2",
        edit(
            "scores = (q @ k.transpose(-2, -1)) * self.scale",
            "scores = (q * self.scale**0.5) @ (k * self.scale**0.5).transpose(-2, -1)",
        ),
    ),
    healthy(
        "sinusoidal-positions",
        "fixed positions in a buffer, the same in every process",
        edit(
            POSITIONS,
            "angles = torch.arange(num_patches + 1)[:, None] / 100 ** (torch.arange(dim // 2) / (dim // 2))\n"
            '        self.register_buffer("pos_embed", 0.3 * torch.cat([angles.sin(), angles.cos()], dim=1)[None])',
        ),
    ),
    healthy(
        "mean-of-tokens-instead-of-class-token",
        "global average pooling, no class token",
        edit(
            "        cls_token = self.cls_token.expand(x.shape[0], -1, -1)\n"
            "        x = torch.cat([cls_token, x], dim=1) + self.pos_embed\n",
            "        x = x + self.pos_embed\n",
        ),
        edit("        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))\n", ""),
        edit("        nn.init.trunc_normal_(self.cls_token, std=0.02)\n", ""),
        edit("num_patches + 1, dim", "num_patches, dim"),
        edit(HEAD, HEAD.replace("[:, 0]", ".mean(dim=1)")),
    ),
    healthy(
        "accumulated-loss-of-equal-windows",
        "with whole windows only, dividing by the fixed number is exact",
        edit("(loss / window)", "(loss / ACCUMULATE)", "train.py"),
        edit("make_data(600, seed=1)", "make_data(576, seed=1)", "train.py"),
        edit(
            "        # The last window may hold fewer micro-batches than the others.\n"
            "        window = min(ACCUMULATE, len(loader) - step // ACCUMULATE * ACCUMULATE)\n",
            "",
            "train.py",
        ),
    ),
]
