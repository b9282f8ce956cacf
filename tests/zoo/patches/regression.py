"""Bugs and healthy variations of `regression`."""

from ..model import Patches

patches = Patches("regression")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

TRAIN_LOSS = "            loss = loss_fn(outputs, targets)\n            optimizer.zero_grad()\n"
STANDARDISE = "yield (inputs - x_mean) / x_std, (targets - y_mean) / y_std"
SCHEDULER = "CosineAnnealingLR(optimizer, T_max=30, eta_min=1e-5)"

BUGS = [
    bug(
        "targets-broadcast-against-outputs",
        "L12",
        "LOS907",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("targets)", "targets.squeeze(1))")),
    ),
    bug(
        "outputs-squeezed-against-column-targets",
        "L12",
        "LOS907",
        edit(
            "            outputs = model(inputs)\n            loss = loss_fn",
            "            outputs = model(inputs).squeeze(1)\n            loss = loss_fn",
        ),
    ),
    bug(
        "regression-loss-negated",
        "L05",
        "LOS903 TRN415",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("loss_fn(outputs", "-loss_fn(outputs")),
    ),
    bug(
        "regression-output-detached",
        "L09",
        "LOS905 GRD305 TRN415",
        edit(
            TRAIN_LOSS,
            TRAIN_LOSS.replace("outputs, targets)", "outputs.detach(), targets)")
            + "            loss.requires_grad_()\n",
        ),
    ),
    bug(
        "regression-loss-clamped",
        "L10",
        "LOS906 GRD305 TRN415",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("targets)", "targets).clamp(max=0.2)")),
    ),
    bug("regression-gradients-pile-up", "O11", "TRN403", edit("            optimizer.zero_grad()\n", "")),
    bug(
        "regression-schedule-per-batch",
        "S02",
        "LRS803 LRS802",
        edit("            optimizer.step()\n", "            optimizer.step()\n            scheduler.step()\n"),
        edit("        scheduler.step()\n        val_loss", "        val_loss"),
    ),
    bug(
        "regression-loss-per-batch",
        "E04",
        "EVL604 EVL603",
        edit(
            "loss_fn(outputs, targets).item() * len(targets)\n                absolute",
            "loss_fn(outputs, targets).item()\n                absolute",
        ),
    ),
    bug(
        "regression-keeps-the-worst",
        "own",
        "EVL610",
        edit('best = float("inf")', "best = 0.0"),
        edit("if val_loss < best:", "if val_loss > best:"),
    ),
    bug(
        "regression-splits-overlap",
        "D09",
        "DAT207",
        edit("    train_x, train_y", "    val_set.indices = train_set.indices[:130]\n    train_x, train_y"),
    ),
    bug(
        "regression-inputs-standardised-in-training-only",
        "D14",
        "DAT210",
        edit(
            "    def batches(loader):\n        for inputs, targets in loader:\n            " + STANDARDISE,
            "    def batches(loader):\n        for inputs, targets in loader:\n"
            "            yield (inputs - x_mean) / x_std if model.training else inputs, (targets - y_mean) / y_std",
        ),
    ),
    bug(
        "regression-not-shuffled",
        "D05",
        "DAT204",
        edit("DataLoader(train_set, batch_size=64, shuffle=True)", "DataLoader(train_set, batch_size=64)"),
    ),
    bug(
        "regression-rows-and-targets-apart",
        "D21",
        "DAT213 TRN415",
        edit("TensorDataset(x, y)", "TensorDataset(x, y[torch.randperm(len(y))])"),
    ),
    bug(
        "regression-head-bounded",
        "own",
        "LOS905",
        edit("nn.Linear(64, 1))", "nn.Linear(64, 1), nn.Softmax(dim=1))"),
    ),
]

HEALTHY = [
    healthy(
        "lbfgs-with-a-closure",
        "the optimizer calls the closure several times a step",
        edit(
            "torch.optim.Adam(model.parameters(), lr=3e-3)", "torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=4)"
        ),
        edit(
            TRAIN_LOSS + "            loss.backward()\n            optimizer.step()\n",
            "\n            def closure(inputs=inputs, targets=targets):\n                optimizer.zero_grad()\n"
            "                loss = loss_fn(model(inputs), targets)\n                loss.backward()\n"
            "                return loss\n\n            loss = optimizer.step(closure)\n",
        ),
    ),
    healthy("huber-loss", "outliers weigh less on purpose", edit("nn.MSELoss()", "nn.SmoothL1Loss()")),
    healthy(
        "targets-flattened-with-outputs",
        "both sides lose the column, so nothing broadcasts",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("outputs, targets", "outputs.squeeze(1), targets.squeeze(1)")),
    ),
    healthy(
        "penalty-written-by-hand",
        "an L2 penalty in the loss instead of weight decay",
        edit(
            TRAIN_LOSS,
            TRAIN_LOSS.replace("targets)", "targets) + 1e-5 * sum(p.square().sum() for p in model.parameters())"),
        ),
    ),
]
