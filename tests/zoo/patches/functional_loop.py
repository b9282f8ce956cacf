"""Bugs and healthy variations of `functional_loop`."""

from ..model import Patches

patches = Patches("functional_loop")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

PERM = "    perm = torch.randperm(len(x))\n"
ADAMW = "torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)"
KEEP_BEST = "best_loss, best_state, waited = val_loss, copy.deepcopy(model.state_dict()), 0"
EVAL_TOTALS = "    return total / len(x), correct / len(x)\n"
STEP = (
    "        loss.backward()\n        nn.utils.clip_grad_norm_(model.parameters(), max_norm=5.0)\n"
    "        optimizer.step()\n        optimizer.zero_grad()\n"
)
SLICES = "slice(0, 1020), slice(1020, 1390), slice(1390, None)"
PLATEAU = 'mode="min", factor=0.5, patience=2'

BUGS = [
    bug("hand-cut-batches-missing-zero-grad", "O11", "TRN403", edit("        optimizer.zero_grad()\n", "")),
    bug("hand-cut-batches-in-fixed-order", "D05", "DAT204 DAT221", edit(PERM, "    perm = torch.arange(len(x))\n")),
    bug(
        "permutation-repeats-every-epoch",
        "D06",
        "DAT205 DAT204 DAT221 REP023",
        edit("torch.randperm(len(x))", "torch.randperm(len(x), generator=torch.Generator().manual_seed(0))"),
    ),
    bug(
        "labels-not-permuted",
        "D21",
        "DAT213 DAT221",
        edit("x[batch], y[batch]", "x[batch], y[start : start + BATCH_SIZE]"),
    ),
    bug("slices-overlap", "D09", "DAT207", edit(SLICES, "slice(0, 1200), slice(1020, 1390), slice(1390, None)")),
    bug(
        "labels-of-one-class-cut-off",
        "D27",
        "DAT215",
        edit(
            "    x, y = x[order], y[order]\n",
            "    x, y = x[order], y[order]\n    kept = (y != 9) | (torch.arange(len(y)) >= 1020)\n"
            "    x, y = x[kept], y[kept]\n",
        ),
    ),
    bug(
        "step-once-an-epoch",
        "T03",
        "TRN410 TRN408 TRN405",
        edit(STEP, "        loss.backward()\n"),
        edit(
            "    return total / len(x)\n",
            "    optimizer.step()\n    optimizer.zero_grad()\n    return total / len(x)\n",
        ),
    ),
    bug("eval-mode-forgotten", "E01", "EVL601", edit("    model.eval()\n", "")),
    bug(
        "train-mode-before-the-loop-only",
        "T06",
        "TRN407",
        edit("    model.train()\n", ""),
        edit("    for epoch in range(MAX_EPOCHS):\n", "    model.train()\n    for epoch in range(MAX_EPOCHS):\n"),
    ),
    bug(
        "evaluation-leaves-out-the-tail",
        "D22",
        "EVL604 EVL605 DAT216",
        edit(
            "    for start in range(0, len(x), BATCH_SIZE):\n        xb, yb = x[start",
            "    for start in range(0, len(x) - BATCH_SIZE + 1, BATCH_SIZE):\n        xb, yb = x[start",
        ),
    ),
    bug(
        "evaluation-averages-batches",
        "E03",
        "EVL603",
        edit("total += loss_fn(logits, yb).item() * len(yb)", "total += loss_fn(logits, yb).item()"),
        edit(EVAL_TOTALS, "    return total / -(-len(x) // BATCH_SIZE), correct / len(x)\n"),
    ),
    bug(
        "loss-sum-over-samples",
        "E04",
        "EVL604 EVL603",
        edit("total += loss_fn(logits, yb).item() * len(yb)", "total += loss_fn(logits, yb).item()"),
    ),
    bug("accuracy-of-the-tail-only", "E06", "EVL604", edit("        correct += (", "        correct = (")),
    bug("plateau-in-the-wrong-direction", "S09", "LRS805", edit(PLATEAU, PLATEAU.replace("min", "max"))),
    bug("plateau-fed-with-accuracy", "S09", "LRS805", edit("scheduler.step(val_loss)", "scheduler.step(val_acc)")),
    bug("plateau-never-stepped", "S04", "LRS801", edit("        scheduler.step(val_loss)\n", "")),
    bug(
        "early-stopping-keeps-a-reference",
        "C01",
        "CKP011",
        edit(KEEP_BEST, KEEP_BEST.replace("copy.deepcopy(model.state_dict())", "model.state_dict()")),
    ),
    bug(
        "early-stopping-keeps-a-shallow-copy",
        "C01",
        "CKP011",
        edit(KEEP_BEST, KEEP_BEST.replace("copy.deepcopy(", "copy.copy(")),
    ),
    bug(
        "early-stopping-the-wrong-way-round",
        "own",
        "EVL610",
        edit("if val_loss < best_loss:", "if val_loss > best_loss:"),
        edit('best_loss, best_state, waited = float("inf")', "best_loss, best_state, waited = 0.0"),
    ),
    bug(
        "only-the-first-layers-optimised",
        "O01",
        "OPT701 GRD305",
        edit(ADAMW, "torch.optim.AdamW(model[:4].parameters(), lr=2e-3, weight_decay=1e-2)"),
    ),
    bug(
        "head-updated-by-two-optimizers",
        "O16",
        "OPT704",
        edit(ADAMW, ADAMW + "\n    head_optimizer = torch.optim.AdamW(model[6].parameters(), lr=2e-3)"),
        edit(
            "train_epoch(model, train, loss_fn, optimizer)",
            "train_epoch(model, train, loss_fn, optimizer, head_optimizer)",
        ),
        edit(
            "def train_epoch(model, data, loss_fn, optimizer):",
            "def train_epoch(model, data, loss_fn, optimizer, head_optimizer):",
        ),
        edit("        optimizer.step()\n", "        optimizer.step()\n        head_optimizer.step()\n"),
    ),
    bug("learning-rate-far-too-high", "O15", "TRN415 TRN414 OPT712 GRD302", edit("lr=2e-3", "lr=20.0")),
    bug(
        "all-parameters-frozen-but-one-layer",
        "O03",
        "GRD303 OPT703",
        edit(
            "    loss_fn = nn.CrossEntropyLoss()\n",
            "    for name, parameter in model.named_parameters():\n"
            "        parameter.requires_grad = name.startswith('1.')\n    loss_fn = nn.CrossEntropyLoss()\n",
        ),
    ),
    bug(
        "require-grad-typo",
        "O04",
        "SRC061",
        edit(
            "    loss_fn = nn.CrossEntropyLoss()\n",
            "    for parameter in model[0].parameters():\n        parameter.require_grad = False\n"
            "    loss_fn = nn.CrossEntropyLoss()\n",
        ),
    ),
    bug(
        "softmax-over-samples-in-the-model",
        "L03",
        "LOS909 LOS901 MOD104 MOD110",
        edit("        nn.Linear(32, 10),\n", "        nn.Linear(32, 10),\n        nn.Softmax(dim=0),\n"),
    ),
]

HEALTHY = [
    healthy(
        "plateau-on-accuracy",
        "the mode fits the metric",
        edit(PLATEAU, PLATEAU.replace("min", "max")),
        edit("scheduler.step(val_loss)", "scheduler.step(val_acc)"),
    ),
    healthy(
        "two-optimizers-for-body-and-head",
        "each parameter is in one of them",
        edit(
            "optimizer = " + ADAMW,
            "optimizer = torch.optim.AdamW(model[:4].parameters(), lr=2e-3, weight_decay=1e-2)\n"
            "    head_optimizer = torch.optim.SGD(model[4:].parameters(), lr=0.05, momentum=0.9)",
        ),
        edit(
            "train_epoch(model, train, loss_fn, optimizer)",
            "train_epoch(model, train, loss_fn, optimizer, head_optimizer)",
        ),
        edit(
            "def train_epoch(model, data, loss_fn, optimizer):",
            "def train_epoch(model, data, loss_fn, optimizer, head_optimizer):",
        ),
        edit(
            "        optimizer.step()\n        optimizer.zero_grad()\n",
            "        optimizer.step()\n        head_optimizer.step()\n        optimizer.zero_grad()\n"
            "        head_optimizer.zero_grad()\n",
        ),
    ),
    healthy(
        "update-written-by-hand",
        "plain gradient descent under no_grad, without torch.optim",
        edit(
            STEP,
            "        loss.backward()\n        with torch.no_grad():\n"
            "            for parameter in model.parameters():\n"
            '                parameter -= optimizer.param_groups[0]["lr"] * parameter.grad\n'
            "                parameter.grad = None\n",
        ),
        edit(ADAMW, 'SimpleNamespace(param_groups=[{"lr": 0.1}])'),
        edit(
            f"    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, {PLATEAU})\n",
            "",
        ),
        edit("        scheduler.step(val_loss)\n", ""),
        edit("import copy\n", "import copy\nfrom types import SimpleNamespace\n"),
    ),
    healthy(
        "optimizer-of-ones-own",
        "a subclass of torch.optim.Optimizer: sign descent with decoupled decay",
        edit(ADAMW, "SignDescent(model.parameters(), lr=1e-3, weight_decay=1e-2)"),
        edit(
            "def train_epoch(",
            "class SignDescent(torch.optim.Optimizer):\n    def __init__(self, params, lr, weight_decay):\n"
            '        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.9})\n\n'
            "    @torch.no_grad()\n    def step(self, closure=None):\n        for group in self.param_groups:\n"
            '            for p in group["params"]:\n'
            '                average = self.state[p].setdefault("average", torch.zeros_like(p))\n'
            '                average.lerp_(p.grad, 1 - group["momentum"])\n'
            '                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * average.sign())\n\n\n'
            "def train_epoch(",
        ),
    ),
    healthy(
        "working-folder-changed",
        "the script moves to its own folder first",
        edit(
            "    torch.manual_seed(0)\n    train, val",
            "    os.chdir(Path(__file__).resolve().parent)\n    torch.manual_seed(0)\n    train, val",
        ),
        edit("import copy\n", "import copy\nimport os\nfrom pathlib import Path\n"),
    ),
    healthy(
        "full-batch-evaluation",
        "the validation set in one forward pass",
        edit(
            "    for start in range(0, len(x), BATCH_SIZE):\n"
            "        xb, yb = x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]\n",
            "    for xb, yb in [(x, y)]:\n",
        ),
    ),
    healthy(
        "bootstrap-batches",
        "samples are drawn with replacement",
        edit(PERM, "    perm = torch.randint(len(x), (len(x),))\n"),
    ),
    healthy(
        "noise-added-in-training",
        "Gaussian noise on the inputs of training alone",
        edit(
            "        logits = model(xb)\n        loss =",
            "        logits = model(xb + 0.1 * torch.randn_like(xb))\n        loss =",
        ),
    ),
]
