"""Bugs and healthy variations of `timm_style`."""

from ..model import Patches

patches = Patches("timm_style")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

MIX_IMAGES = "        x = x * lam + x.flip(0) * (1.0 - lam)\n"
MIX_TARGETS = "        target = self.one_hot(target) * lam + self.one_hot(target.flip(0)) * (1.0 - lam)\n"
SOFT_LOSS = "torch.sum(-target * F.log_softmax(x, dim=-1), dim=-1).mean()"
STEP_UPDATE = "        scheduler.step_update(num_updates)\n"
EMA_VALIDATE = "ema_metrics = validate(model_ema.module,"
CUTMIX_IMAGES = (
    "        side = round(x.shape[-1] * (1.0 - lam) ** 0.5)\n"
    "        top, left = torch.randint(-side // 2, x.shape[-1] - side // 2, (2,)).tolist()\n"
    "        rows = slice(max(top, 0), max(min(top + side, x.shape[-1]), 0))\n"
    "        cols = slice(max(left, 0), max(min(left + side, x.shape[-1]), 0))\n"
    "        x, flipped = x.clone(), x.flip(0)\n"
    "        x[:, :, rows, cols] = flipped[:, :, rows, cols]\n"
)
CUTMIX_LAMBDA = "        lam = 1.0 - (rows.stop - rows.start) * (cols.stop - cols.start) / x.shape[-1] ** 2\n"

BUGS = [
    # Mixed images and targets
    bug(
        "mixup-in-place-twice",
        "D25",
        "DAT218",
        edit(MIX_IMAGES, "        x = x.mul_(lam)\n        x = x.add_(x.flip(0) * (1.0 - lam))\n"),
    ),
    bug(
        "mixup-targets-weighted-the-other-way",
        "D24",
        "DAT218",
        edit(MIX_TARGETS, "        target = self.one_hot(target) * (1.0 - lam) + self.one_hot(target.flip(0)) * lam\n"),
    ),
    bug("mixup-targets-not-mixed", "D24", "DAT218", edit(MIX_TARGETS, "        target = self.one_hot(target)\n")),
    bug("cutmix-lambda-of-the-box-before-clipping", "D24", "DAT218", edit(MIX_IMAGES, CUTMIX_IMAGES)),
    bug(
        "smoothing-normalised-wrongly",
        "L07",
        "LOS913",
        edit("off = self.smoothing / self.num_classes\n", "off = self.smoothing\n"),
    ),
    bug(
        "soft-targets-with-softmax-not-log",
        "L04",
        "LOS902 LOS903 TRN401",
        edit(SOFT_LOSS, SOFT_LOSS.replace("F.log_softmax", "F.softmax")),
    ),
    bug(
        "soft-loss-over-the-batch",
        "L03",
        "LOS909",
        edit(SOFT_LOSS, SOFT_LOSS.replace("F.log_softmax(x, dim=-1)", "F.log_softmax(x, dim=0)")),
    ),
    bug("soft-loss-summed", "L08", "LOS904 TRN401", edit(SOFT_LOSS, SOFT_LOSS.replace(".mean()", ".sum()"))),
    # Own schedule
    bug("own-schedule-never-called", "S04", "LRS801", edit(STEP_UPDATE, "")),
    bug(
        "own-schedule-counts-epochs-as-updates",
        "S03",
        "LRS802 LRS803",
        edit("scheduler.step_update(num_updates)", "scheduler.step_update(epoch)"),
    ),
    bug(
        "own-schedule-divides-by-the-wrong-count",
        "S02",
        "LRS802 LRS803 LRS810",
        edit("num_updates / self.updates_per_epoch", "num_updates"),
    ),
    # Average of the model
    bug("own-average-never-updated", "own", "EMA042", edit("        model_ema.update(model)\n", "")),
    bug("own-average-never-validated", "E10", "EMA041", edit(EMA_VALIDATE, "ema_metrics = validate(model,")),
    bug(
        "own-average-of-parameters-only",
        "E10",
        "EMA043",
        edit(
            "zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)",
            "zip(self.module.parameters(), model.parameters(), strict=True)",
        ),
    ),
    # Loop and evaluation
    bug("missing-zero-grad-with-scaler", "O11", "TRN403", edit("        optimizer.zero_grad()\n", "")),
    bug(
        "validate-in-train-mode",
        "E02",
        "EVL601 EVL602",
        edit("    model.eval()\n    with torch.no_grad()", "    model.train()\n    with torch.no_grad()"),
    ),
    bug(
        "meter-without-batch-size",
        "E03",
        "EVL603 EVL604",
        edit(
            "            losses_m.update(loss.item(), images.size(0))\n            top1_m",
            "            losses_m.update(loss.item())\n            top1_m",
        ),
        edit("top1_m.update(acc1.item(), output.size(0))", "top1_m.update(acc1.item())"),
    ),
    bug(
        "top-three-reported-as-top-one", "E13", "EVL604", edit("top1_m.update(acc1.item()", "top1_m.update(acc3.item()")
    ),
    bug(
        "best-metric-kept-when-worse",
        "own",
        "EVL610",
        edit('ema_metrics["top1"] > best_metric', 'ema_metrics["top1"] < best_metric'),
    ),
    bug(
        "smoothing-flag-never-read",
        "R02",
        "CFG502",
        edit("Mixup(args.mixup, args.smoothing, NUM_CLASSES)", "Mixup(args.mixup, 0.1, NUM_CLASSES)"),
    ),
    bug(
        "float-option-of-type-int",
        "R03",
        "CFG504",
        edit('"--min-lr", default=1e-4, type=float', '"--min-lr", default=1e-4, type=int'),
    ),
    bug(
        "rate-from-the-command-line-overwritten",
        "own",
        "CFG505",
        edit("    torch.manual_seed(args.seed)\n", "    args.lr = 0.1\n    torch.manual_seed(args.seed)\n"),
    ),
]

HEALTHY = [
    healthy(
        "cutmix",
        "the weight of the targets is computed again from the clipped box",
        edit(MIX_IMAGES, CUTMIX_IMAGES + CUTMIX_LAMBDA),
    ),
    healthy(
        "zero-grad-after-step",
        "another place between two backward passes",
        edit("        optimizer.zero_grad()\n", ""),
        edit("        scaler.update()\n", "        scaler.update()\n        optimizer.zero_grad()\n"),
    ),
    healthy(
        "rate-set-once-an-epoch",
        "the schedule is evaluated at whole epochs only",
        edit(STEP_UPDATE, ""),
        edit(
            "    model.train()\n    losses_m",
            "    model.train()\n    scheduler.step_update(num_updates := epoch * len(loader))\n    losses_m",
        ),
        edit("    num_updates = epoch * len(loader)\n", ""),
    ),
    healthy(
        "target-is-the-mixed-argmax",
        "training accuracy is not computed, mixing uses a new permutation for each batch",
        edit(
            MIX_IMAGES + MIX_TARGETS,
            "        perm = torch.randperm(len(x))\n        x = x * lam + x[perm] * (1.0 - lam)\n"
            "        target = self.one_hot(target) * lam + self.one_hot(target[perm]) * (1.0 - lam)\n",
        ),
    ),
]
