"""Bugs and healthy variations of `char_lm`."""

from ..model import Patches

patches = Patches("char_lm")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

ATTENTION = "F.scaled_dot_product_attention(q, k, v, is_causal=True)"
STEP = "        optimizer.zero_grad(set_to_none=True)\n        loss.backward()\n"
SET_LR = '        for group in optimizer.param_groups:\n            group["lr"] = lr_at(iteration)\n'
ADAMW = "torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)"
CLIP = "        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"

BUGS = [
    bug("iterations-without-zero-grad", "O11", "TRN403", edit("        optimizer.zero_grad(set_to_none=True)\n", "")),
    bug(
        "attention-input-scaled-again",
        "M47",
        "MOD117",
        edit("        attended =", "        q = q * q.shape[-1] ** -0.5\n        attended ="),
    ),
    bug(
        "attention-in-the-wrong-layout",
        "M46",
        "MOD118 MOD116",
        edit(".permute(2, 0, 3, 1, 4)", ".permute(2, 0, 1, 3, 4)"),
        edit("attended.transpose(1, 2).reshape(b, n, d)", "attended.reshape(b, n, d)"),
        edit(ATTENTION, "F.scaled_dot_product_attention(q, k, v)"),
    ),
    bug(
        "rate-computed-and-not-set",
        "S04",
        "LRS801",
        edit(SET_LR, "        lr = lr_at(iteration)\n"),
        edit("iteration + 1}: train", "iteration + 1}: lr {lr:.5f}, train"),
    ),
    bug(
        "language-model-left-in-eval-mode",
        "T06",
        "TRN407",
        edit("    model.train()\n    return loss\n", "    return loss\n"),
        edit("nn.Linear(4 * DIM, DIM))", "nn.Linear(4 * DIM, DIM), nn.Dropout(0.1))"),
    ),
    bug(
        "language-model-softmax-then-loss",
        "L01",
        "LOS901",
        edit(
            "logits.view(-1, logits.size(-1)), y.view(-1))", "logits.view(-1, logits.size(-1)).softmax(-1), y.view(-1))"
        ),
    ),
    bug(
        "language-model-clip-after-step",
        "T02",
        "TRN408",
        edit(CLIP, ""),
        edit("        optimizer.step()\n", "        optimizer.step()\n" + CLIP),
    ),
    bug(
        "language-model-blocks-not-optimised",
        "O01",
        "OPT701 GRD305",
        edit(
            "AdamW(model.parameters()",
            "AdamW([*model.embed.parameters(), *model.position.parameters(), *model.norm.parameters()]",
        ),
    ),
    bug("language-model-betas-swapped", "O10", "OPT706", edit("betas=(0.9, 0.95)", "betas=(0.95, 0.9)")),
    bug(
        "batches-at-the-same-offsets",
        "T11",
        "REP023 DAT205 DAT204 DAT220",
        edit("    offsets = torch", "    torch.manual_seed(0)\n    offsets = torch"),
    ),
    bug(
        "language-model-best-by-highest-loss",
        "own",
        "EVL610",
        edit('best = float("inf")', "best = 0.0"),
        edit("if val_loss < best:", "if val_loss > best:"),
    ),
    bug(
        "rate-schedule-ends-far-away",
        "S01",
        "LRS802",
        edit("(MAX_ITERS - WARMUP_ITERS)\n", "(10 * MAX_ITERS - WARMUP_ITERS)\n"),
    ),
    bug(
        "language-model-head-detached",
        "L09",
        "GRD304 GRD301 GRD305 LOS905",
        edit("self.head(self.norm(self.blocks(x)))", "self.head(self.norm(self.blocks(x)).detach())"),
    ),
]

HEALTHY = [
    healthy(
        "queries-scaled-by-hand",
        "the scale is on the queries and switched off in the call",
        edit(ATTENTION, "F.scaled_dot_product_attention(q * q.shape[-1] ** -0.5, k, v, is_causal=True, scale=1.0)"),
    ),
    healthy(
        "untied-head",
        "embedding and head each have their own weights",
        edit("        self.head.weight = self.embed.weight\n", "        nn.init.normal_(self.head.weight, std=0.02)\n"),
    ),
    healthy(
        "mask-added-to-scores",
        "causal attention written out",
        edit(ATTENTION, "self.attend(q, k, v)"),
        edit(
            "    def forward(self, x):\n        b, n, d",
            "    def attend(self, q, k, v):\n"
            "        future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)\n"
            '        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(future, float("-inf"))\n'
            "        return scores.softmax(dim=-1) @ v\n\n    def forward(self, x):\n        b, n, d",
        ),
    ),
]
