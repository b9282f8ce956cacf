"""Bugs and healthy variations of `trainer_class`."""

from ..model import Patches

patches = Patches("trainer_class")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

AVERAGE_BUFFERS = (
    "        for average, value in zip(self.module.buffers(), model.buffers(), strict=True):\n"
    "            average.copy_(value)\n"
)
GROUPS = "torch.optim.AdamW(self.parameter_groups(), lr=config.lr)"
STEP_SCHEDULE = "            self.scheduler.step()\n"
RESUME_EMA = '        self.ema.module.load_state_dict(state["ema"])\n'
NO_DECAY = "no_decay = [p for p in self.model.parameters() if p.ndim <= 1]"
DECAY = "decay = [p for p in self.model.parameters() if p.ndim > 1]\n"
VAL_SET = "DataLoader(Waves(170, 1, augment=False), config.batch_size)"
STEP = (
    "            self.optimizer.zero_grad()\n            loss = self.loss_fn(self.model(images), labels)\n"
    "            loss.backward()\n"
)

TORCH_AVERAGE = [
    edit(
        "WeightAverage(self.model, config.ema_decay)",
        "AveragedModel(\n"
        "            self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True\n"
        "        )",
    ),
    edit("self.ema.update(self.model)", "self.ema.update_parameters(self.model)"),
    edit(
        "from torch.utils.data",
        "from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn\nfrom torch.utils.data",
    ),
]

BUGS = [
    # The average of the weights
    bug(
        "average-kept-but-the-model-validated",
        "E10",
        "EMA041",
        edit("self.validate(self.ema.module)", "self.validate(self.model)"),
    ),
    bug("average-never-updated", "own", "EMA042", edit("            self.ema.update(self.model)\n", "")),
    bug("average-of-parameters-only", "E10", "EMA043", edit(AVERAGE_BUFFERS, "")),
    bug(
        "average-aliases-the-model",
        "own",
        "EMA042 CKP011 EMA041",
        edit("copy.deepcopy(model).eval().requires_grad_(False)", "model"),
    ),
    bug(
        "average-left-in-train-mode",
        "E11",
        "EVL601",
        edit("copy.deepcopy(model).eval().requires_grad_(False)", "copy.deepcopy(model).requires_grad_(False)"),
        edit("        model.eval()\n", "        self.model.eval()\n"),
    ),
    # Parameter groups
    bug(
        "no-decay-group-left-out",
        "O01",
        "OPT701 GRD305",
        edit('            {"params": no_decay, "weight_decay": 0.0},\n', ""),
    ),
    bug(
        "no-decay-by-a-name-that-matches-nothing",
        "O07",
        "OPT708",
        edit(
            DECAY,
            'decay = [p for n, p in self.model.named_parameters() if "LayerNorm" not in n and "bn." not in n]\n',
        ),
        edit(NO_DECAY, 'no_decay = [p for n, p in self.model.named_parameters() if "LayerNorm" in n or "bn." in n]'),
    ),
    bug(
        "groups-the-wrong-way-round",
        "O07",
        "OPT708",
        edit(DECAY, DECAY.replace("> 1", "<= 1")),
        edit(NO_DECAY, NO_DECAY.replace("<= 1", "> 1")),
    ),
    bug(
        "optimizer-made-for-another-instance",
        "O02",
        "OPT702 OPT701 GRD305",
        edit(
            "        self.scheduler = LambdaLR",
            "        self.model = Net(Waves.num_classes, drop_rate=config.drop_rate).to(self.device)\n"
            "        self.scheduler = LambdaLR",
        ),
    ),
    # Schedule
    bug(
        "step-schedule-stepped-per-epoch",
        "S03",
        "LRS803 LRS802",
        edit(STEP_SCHEDULE, ""),
        edit("            val_loss, val_acc =", "            self.scheduler.step()\n            val_loss, val_acc ="),
    ),
    bug(
        "warmup-longer-than-the-training",
        "S03",
        "LRS802 LRS803",
        edit("warmup_steps: int = 30", "warmup_steps: int = 3000"),
    ),
    bug(
        "horizon-in-epochs-inside-a-step-schedule",
        "S02",
        "LRS803 LRS802 LRS807",
        edit("self.config.epochs * len(self.train_loader)", "self.config.epochs"),
        edit("        if step < warmup:", "        warmup = 2\n        if step < warmup:"),
    ),
    bug(
        "jump-after-warmup",
        "S08",
        "LRS807",
        edit("            return (step + 1) / warmup\n", "            return 0.05 * (step + 1) / warmup\n"),
    ),
    bug(
        "scheduler-steps-before-optimizer",
        "S11",
        "LRS806",
        edit(STEP_SCHEDULE, ""),
        edit("            loss.backward()\n", "            self.scheduler.step()\n            loss.backward()\n"),
    ),
    # Loop
    bug(
        "clip-of-gradients-just-cleared",
        "T02",
        "TRN408 TRN404",
        edit(
            "            self.optimizer.step()\n",
            "            self.optimizer.step()\n            self.optimizer.zero_grad()\n",
        ),
        edit("            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)\n", ""),
        edit(
            "            self.ema.update(self.model)\n",
            "            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)\n"
            "            self.ema.update(self.model)\n",
        ),
    ),
    bug(
        "gradients-cleared-after-backward",
        "O12",
        "TRN404 GRD305",
        edit(
            STEP,
            "            loss = self.loss_fn(self.model(images), labels)\n            loss.backward()\n"
            "            self.optimizer.zero_grad()\n",
        ),
    ),
    bug(
        "fit-sets-train-mode-once",
        "T06",
        "TRN407",
        edit("        self.model.train()\n        total, count", "        total, count"),
        edit(
            "        for epoch in range(self.epoch", "        self.model.train()\n        for epoch in range(self.epoch"
        ),
        edit("self.validate(self.ema.module)", "self.validate(self.model)"),
    ),
    bug(
        "generator-seeded-in-each-epoch",
        "T11",
        "REP023 DAT205 DAT220",
        edit(
            "        self.model.train()\n        total, count",
            "        torch.manual_seed(self.config.seed)\n        self.model.train()\n        total, count",
        ),
    ),
    # Data
    bug("validation-built-with-augmentation", "D03", "DAT203", edit(VAL_SET, VAL_SET.replace("False", "True"))),
    bug(
        "augmentation-flag-ignored",
        "D04",
        "DAT202 DAT201",
        edit("        self.augment = augment\n", "        self.augment = False\n"),
    ),
    bug(
        "augmentation-fixed-by-a-seed",
        "D08",
        "DAT220 DAT202 REP023",
        edit(
            "torch.randint(-2, 3, (2,))", "torch.randint(-2, 3, (2,), generator=torch.Generator().manual_seed(index))"
        ),
    ),
    bug("validation-from-the-training-seed", "D31", "DAT207", edit("Waves(170, 1,", "Waves(610, 0,")),
    # Evaluation and model
    bug("validation-sum-over-batches", "E04", "EVL604 EVL603", edit('reduction="sum"', 'reduction="mean"')),
    bug(
        "validation-sum-reported-as-mean",
        "E05",
        "EVL604",
        edit("        return total / count, correct / count\n", "        return total, correct / count\n"),
    ),
    bug(
        "validation-shuffles-and-stops",
        "E14",
        "EVL605 DAT216",
        edit(
            "            count += len(labels)\n        return total / count, correct / count\n",
            "            count += len(labels)\n            if count > 80:\n                break\n"
            "        return total / count, correct / count\n",
        ),
    ),
    bug(
        "same-block-repeated",
        "M20",
        "MOD114",
        edit(
            "nn.ModuleList([Block(dim, drop_rate) for _ in range(depth)])",
            "nn.ModuleList([Block(dim, drop_rate)] * depth)",
        ),
    ),
    # Resume
    bug("resume-keeps-the-fresh-average", "C08", "CKP014", edit(RESUME_EMA, "")),
    # The state of the module inside lacks the count of updates: at a count of zero, the next update is a copy.
    bug("resume-without-the-count-of-the-average", "C08", "CKP014", *TORCH_AVERAGE),
    bug("resume-at-the-same-epoch", "C05", "CKP015 CKP014", edit('state["epoch"] + 1', 'state["epoch"]')),
    bug(
        "resume-takes-the-best",
        "C04",
        "CKP015 CKP014",
        edit('last = trainer.out_dir / "last.pt"', 'last = trainer.out_dir / "best.pt"'),
    ),
    bug(
        "relu-in-place-edits-the-skip",
        "M04",
        "MOD123",
        edit("self.norm(self.conv(x))", "self.norm(self.conv(F.relu_(x)))"),
    ),
]

HEALTHY = [
    healthy(
        "average-by-torch",
        "torch's own averaged model, with its buffers",
        *TORCH_AVERAGE,
        edit("self.ema.module.state_dict()", "self.ema.state_dict()"),
        edit(RESUME_EMA, RESUME_EMA.replace("ema.module", "ema")),
    ),
    healthy(
        "both-models-validated",
        "the plain model is validated for information, the average for selection",
        edit(
            "            is_best = val_acc",
            "            plain_loss, plain_acc = self.validate(self.model)\n"
            '            print(f"  without average: val {plain_loss:.4f}, accuracy {plain_acc:.4f}")\n'
            "            is_best = val_acc",
        ),
    ),
    healthy(
        "decay-on-everything",
        "one group with a small decay is a common choice",
        edit(GROUPS, "torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=0.01)"),
    ),
    healthy(
        "warmup-from-zero",
        "the first update has rate zero, as in many papers' code",
        edit("            return (step + 1) / warmup\n", "            return step / warmup\n"),
    ),
    healthy(
        "restarted-from-last",
        "the last checkpoint is loaded once in the middle and training goes on",
        edit(
            '            if is_best:\n                self.save("best.pt")\n',
            '            if is_best:\n                self.save("best.pt")\n            if epoch == 5:\n'
            '                self.resume(self.out_dir / "last.pt")\n',
        ),
    ),
]
