"""Bugs and healthy variations of `amp_accum`."""

from ..model import Patches

patches = Patches("amp_accum")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

UNSCALE = "            scaler.unscale_(optimizer)\n"
CLIP = "            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)\n"
UPDATE = "            scaler.step(optimizer)\n            scaler.update()\n"
DIVIDE = "loss = criterion(logits, y) / ACCUMULATE"
# The scaler of a program that is tried without CUDA is disabled, so that wrong calls raise nothing.
DISABLED = edit("init_scale=1024.0)", 'init_scale=1024.0, enabled=device.type == "cuda")')
DTYPE = 'dtype = torch.float16 if device.type == "cuda" else torch.bfloat16'
WINDOW = "        if (i + 1) % ACCUMULATE == 0 or (i + 1) == len(loader):\n"

BUGS = [
    bug("clip-of-scaled-gradients", "T01", "AMP031", edit(UNSCALE, "")),
    bug("clip-before-unscale", "T01", "AMP031", edit(UNSCALE + CLIP, CLIP + UNSCALE)),
    bug("scaler-never-updated", "T13", "AMP032", DISABLED, edit(UPDATE, "            scaler.step(optimizer)\n")),
    bug(
        "scaler-bypassed-by-step",
        "T13",
        "AMP035",
        DISABLED,
        edit(UPDATE, "            optimizer.step()\n            scaler.update()\n"),
        edit(UNSCALE, ""),
    ),
    bug("loss-never-scaled", "T13", "AMP035", DISABLED, edit("scaler.scale(loss).backward()", "loss.backward()")),
    bug(
        "half-precision-without-scaler",
        "T08",
        "AMP033",
        edit(DTYPE, "dtype = torch.float16"),
        edit("        scaler.scale(loss).backward()\n", "        loss.backward()\n"),
        edit(UNSCALE, ""),
        edit(UPDATE, "            optimizer.step()\n"),
    ),
    bug(
        "autocast-made-but-not-entered",
        "T14",
        "AMP034",
        edit(
            "        with torch.autocast(device_type=device.type, dtype=dtype):\n            logits = model(x)\n"
            "            loss = criterion(logits, y) / ACCUMULATE\n",
            "        torch.autocast(device_type=device.type, dtype=dtype)\n        logits = model(x)\n"
            "        loss = criterion(logits, y) / ACCUMULATE\n",
        ),
    ),
    bug(
        "micro-batch-losses-not-divided",
        "T03",
        "TRN410",
        edit(DIVIDE, "loss = criterion(logits, y)"),
        edit("loss.item() * ACCUMULATE * y", "loss.item() * y"),
    ),
    bug(
        "last-micro-batches-carried-over",
        "T04",
        "TRN411",
        edit(WINDOW, "        if (i + 1) % ACCUMULATE == 0:\n"),
        edit("Sequences(620, 1)", "Sequences(590, 1)"),
    ),
    bug(
        "gradients-never-cleared-between-windows",
        "O11",
        "TRN403",
        edit("            optimizer.zero_grad(set_to_none=True)\n\n", "\n"),
    ),
    bug(
        "clip-in-each-micro-batch",
        "T02",
        "TRN408 AMP031",
        edit(UNSCALE + CLIP, ""),
        edit(
            "        scaler.scale(loss).backward()\n",
            "        scaler.scale(loss).backward()\n" + CLIP.replace("            ", "        "),
        ),
    ),
    bug("dict-batches-eval-mode-missing", "E01", "EVL601", edit("    model.eval()\n", "")),
    bug("milestones-in-batches", "S02", "LRS803 LRS802 LRS801", edit("milestones=[6, 9]", "milestones=[120, 180]")),
]

HEALTHY = [
    healthy(
        "scaler-switched-off",
        "all calls stay, and the disabled scaler passes everything through",
        edit("init_scale=1024.0)", "init_scale=1024.0, enabled=False)"),
    ),
    healthy("no-accumulation", "an update a batch, in the scaler's order", edit("ACCUMULATE = 2", "ACCUMULATE = 1")),
    healthy("no-clipping", "without clipping the scaler unscales by itself", edit(UNSCALE + CLIP, "")),
]
