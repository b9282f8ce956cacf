"""Bugs and healthy variations of `argparse_script`."""

from ..model import Patches

patches = Patches("argparse_script")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

UPDATE = "        optimizer.zero_grad()\n        loss.backward()\n        optimizer.step()\n"
LEAVE_EVALUATE = "    model.eval()\n    total_loss"
SPLITS = "order[:700], order[700:960], order[960:1220]"
OPTIMIZER_PARAMETERS = "SGD(model.parameters(), lr=args.lr,"
TRAIN_LOADER = "train_set, batch_size=args.batch_size, shuffle=True, num_workers=args.workers)"
VAL_LOADER = "val_set, batch_size=args.batch_size, shuffle=False, num_workers=args.workers)"
BUILD_MODEL = "    model = CNN(num_classes=10, dropout=args.dropout).to(args.device)\n"
TRAIN_SUMS = "        optimizer.step()\n\n        total_loss += loss.item() * len(targets)\n        correct +="
EVAL_LOSS = "        loss = criterion(outputs, targets)\n        total_loss += loss.item() * len(targets)\n"
EVAL_CORRECT = (
    EVAL_LOSS + "        correct += (outputs.argmax(1) == targets).sum().item()\n        seen += len(targets)\n"
    "    return total_loss / seen, correct / seen\n"
)
SCHEDULER = "torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)"
TRAIN_CALL = "        train_loss, train_acc = train_one_epoch("

BUGS = [
    # The step
    bug("missing-zero-grad", "O11", "TRN403", edit("        optimizer.zero_grad()\n", "")),
    bug(
        "zero-grad-between-backward-and-step",
        "O12",
        "TRN404 GRD305 TRN415",
        edit(UPDATE, "        loss.backward()\n        optimizer.zero_grad()\n        optimizer.step()\n"),
    ),
    bug("missing-step", "O13", "TRN405 GRD305 TRN415", edit("        optimizer.step()\n", "")),
    bug("loss-sign-flipped", "L05", "LOS903 TRN415", edit("loss.backward()", "(-loss).backward()")),
    bug(
        "clip-before-backward",
        "T02",
        "TRN408",
        edit(UPDATE, "        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n" + UPDATE),
    ),
    bug(
        "clip-after-step",
        "T02",
        "TRN408",
        edit(UPDATE, UPDATE + "        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"),
    ),
    bug(
        "clip-threshold-tiny",
        "O17",
        "TRN409",
        edit(
            "        optimizer.step()\n",
            "        nn.utils.clip_grad_norm_(model.parameters(), 1e-4)\n        optimizer.step()\n",
        ),
    ),
    bug(
        "train-loop-breaks-after-one-batch",
        "T12",
        "TRN412",
        edit(TRAIN_SUMS, TRAIN_SUMS.replace("\n\n", "\n        if seen:\n            break\n")),
    ),
    bug(
        "loss-summed-with-its-graph",
        "T09",
        "TRN413",
        edit(TRAIN_SUMS, TRAIN_SUMS.replace("loss.item()", "loss")),
    ),
    # Modes
    bug("no-eval-mode", "E01", "EVL601 EVL602", edit(LEAVE_EVALUATE, "    total_loss")),
    bug(
        "train-mode-only-once",
        "T06",
        "TRN407",
        edit("    model.train()\n", ""),
        edit("    for epoch in range(start_epoch", "    model.train()\n    for epoch in range(start_epoch"),
    ),
    bug(
        "dropout-switched-off-for-good",
        "M24",
        "TRN416",
        edit(
            LEAVE_EVALUATE,
            "    for module in model.modules():\n        if isinstance(module, nn.Dropout):\n"
            "            module.p = 0.0\n" + LEAVE_EVALUATE,
        ),
    ),
    # Data
    bug(
        "validation-augmented",
        "D03",
        "DAT203",
        edit(
            "Digits(images[val], digits.target[val], eval_transform)",
            "Digits(images[val], digits.target[val], train_transform)",
        ),
    ),
    bug(
        "augmentation-built-but-not-used",
        "D04",
        "DAT201 DAT202",
        edit("digits.target[train], train_transform)", "digits.target[train], eval_transform)"),
    ),
    bug(
        "one-data-set-shared-by-two-splits",
        "D01",
        "DAT201 DAT202",
        edit(
            "        Digits(images[train], digits.target[train], train_transform),\n"
            "        Digits(images[val], digits.target[val], eval_transform),\n",
            "        train_set,\n        val_set,\n",
        ),
        edit(
            "    return (\n        train_set,",
            "    full = Digits(images[order[:960]], digits.target[order[:960]], train_transform)\n"
            "    train_set, val_set = torch.utils.data.random_split(full, [700, 260])\n"
            "    val_set.dataset.transform = eval_transform\n"
            "    return (\n        train_set,",
        ),
    ),
    bug(
        "random-split-of-an-augmented-data-set",
        "D02",
        "DAT203",
        edit(
            "        Digits(images[train], digits.target[train], train_transform),\n"
            "        Digits(images[val], digits.target[val], eval_transform),\n",
            "        *torch.utils.data.random_split(\n"
            "            Digits(images[order[:960]], digits.target[order[:960]], train_transform), [700, 260]\n"
            "        ),\n",
        ),
    ),
    bug("train-not-shuffled", "D05", "DAT204", edit(TRAIN_LOADER, TRAIN_LOADER.replace("True", "False"))),
    bug(
        "train-sorted-and-not-shuffled",
        "D05",
        "DAT204",
        edit(TRAIN_LOADER, TRAIN_LOADER.replace("True", "False")),
        edit(
            "    to_input = [",
            "    train = train[np.argsort(digits.target[train], kind='stable')]\n    to_input = [",
        ),
    ),
    bug("splits-overlap", "D09", "DAT207", edit(SPLITS, "order[:700], order[500:960], order[960:1220]")),
    bug(
        "validation-is-training",
        "D31",
        "DAT207",
        edit(SPLITS, "order[:700], order[:700], order[960:1220]"),
    ),
    bug("test-is-part-of-training", "D11", "DAT207", edit(SPLITS, "order[:700], order[700:960], order[200:460]")),
    bug(
        "validation-drops-last", "D22", "DAT216 EVL605", edit(VAL_LOADER, VAL_LOADER.replace(")", ", drop_last=True)"))
    ),
    bug(
        "constants-in-another-range",
        "D17",
        "DAT209 SRC067",
        edit(
            "MEAN, STD = (0.304, 0.304, 0.304), (0.375, 0.375, 0.375)",
            "MEAN, STD = (77.5, 77.5, 77.5), (95.6, 95.6, 95.6)",
        ),
    ),
    bug(
        "validation-not-normalised",
        "D14",
        "DAT210 DAT209",
        edit("eval_transform = transforms.Compose(to_input)", "eval_transform = transforms.Compose(to_input[:1])"),
    ),
    bug(
        "divided-by-255-twice",
        "D15",
        "DAT209",
        edit("            image = self.transform(image)\n", "            image = self.transform(image) / 255\n"),
    ),
    bug(
        "float-image-never-scaled",
        "D16",
        "DAT209",
        edit(
            "        image = Image.fromarray(self.images[index])\n",
            "        image = self.images[index].astype(np.float32)\n",
        ),
        edit(
            "    to_input = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]\n",
            "    to_input = [transforms.ToTensor()]\n",
        ),
        edit(
            "([transforms.RandomCrop(16, padding=2)] if augment else []) + to_input",
            "to_input + ([transforms.RandomCrop(16, padding=2)] if augment else [])",
        ),
    ),
    bug(
        "labels-shuffled",
        "D21",
        "DAT213 TRN415",
        edit(
            "    to_input = [",
            "    digits.target = np.random.RandomState(1).permutation(digits.target)\n    to_input = [",
        ),
    ),
    bug(
        "labels-start-at-one",
        "D23",
        "DAT214 DAT215 LOS911",
        edit("return image, int(self.targets[index])", "return image, int(self.targets[index]) + 1"),
        edit("CNN(num_classes=10,", "CNN(num_classes=11,"),
    ),
    bug(
        "class-removed-from-training",
        "D27",
        "DAT215",
        edit("    to_input = [", "    train = train[digits.target[train] != 3]\n    to_input = ["),
    ),
    bug(
        "workers-seeded-with-a-constant",
        "D08",
        "DAT206 DAT220",
        edit('"--workers", type=int, default=0', '"--workers", type=int, default=2'),
        edit(
            TRAIN_LOADER,
            "\n        train_set,\n        batch_size=args.batch_size,\n        shuffle=True,\n"
            "        num_workers=args.workers,\n        worker_init_fn=lambda worker: torch.manual_seed(42),\n    )",
        ),
    ),
    # Model
    bug(
        "dropout-always-on",
        "M22",
        "SRC070 MOD105",
        edit("self.fc(self.dropout(torch.flatten(x, 1)))", "self.fc(nn.functional.dropout(torch.flatten(x, 1), 0.2))"),
    ),
    bug(
        "dropout-made-in-forward",
        "M23",
        "SRC070 MOD105 MOD126",
        edit("self.fc(self.dropout(torch.flatten(x, 1)))", "self.fc(nn.Dropout(0.2)(torch.flatten(x, 1)))"),
    ),
    bug("head-of-1000-classes", "M31", "LOS911 MOD102", edit("CNN(num_classes=10,", "CNN(num_classes=1000,")),
    bug(
        "batch-norm-momentum-of-another-framework",
        "M27",
        "MOD115",
        edit("nn.BatchNorm2d(32)", "nn.BatchNorm2d(32, momentum=0.99)"),
    ),
    bug(
        "softmax-in-the-model",
        "M43",
        "LOS901 MOD110",
        edit(
            "return self.fc(self.dropout(torch.flatten(x, 1)))",
            "return torch.softmax(self.fc(self.dropout(torch.flatten(x, 1))), dim=1)",
        ),
    ),
    # Optimizer and schedule
    bug(
        "head-not-in-optimizer",
        "O01",
        "OPT701 GRD305",
        edit(OPTIMIZER_PARAMETERS, "SGD(model.features.parameters(), lr=args.lr,"),
    ),
    bug(
        "optimizer-before-new-head",
        "O02",
        "OPT701 OPT702 GRD305",
        edit(
            "    scheduler = torch",
            "    model.fc = nn.Linear(512, 10).to(args.device)\n    scheduler = torch",
        ),
    ),
    bug("learning-rate-zero", "O14", "OPT705 TRN415 GRD305", edit("lr=args.lr, momentum", "lr=0.0, momentum")),
    bug(
        "learning-rate-absurdly-low",
        "O14",
        "OPT705 OPT712 TRN415",
        edit('"--lr", type=float, default=0.02', '"--lr", type=float, default=1e-9'),
    ),
    bug("schedule-never-stepped", "S04", "LRS801", edit("        scheduler.step()\n", "")),
    bug(
        "schedule-steps-back-up", "S01", "LRS802", edit(SCHEDULER, SCHEDULER.replace("args.epochs", "args.epochs // 2"))
    ),
    bug("schedule-lags", "S05", "LRS809 SRC063", edit("scheduler.step()", "scheduler.step(epoch - 1)")),
    bug(
        "schedule-before-optimizer",
        "S11",
        "LRS806",
        edit("        scheduler.step()\n", ""),
        edit(TRAIN_CALL, "        scheduler.step()\n" + TRAIN_CALL),
    ),
    # Evaluation
    bug(
        "validation-loss-mean-of-batch-means",
        "E03",
        "EVL603",
        edit(
            EVAL_CORRECT,
            EVAL_CORRECT.replace("loss.item() * len(targets)", "loss.item()").replace(
                "total_loss / seen", "total_loss / len(loader)"
            ),
        ),
    ),
    bug(
        "validation-loss-wrong-denominator",
        "E04",
        "EVL604 EVL603",
        edit(EVAL_CORRECT, EVAL_CORRECT.replace("loss.item() * len(targets)", "loss.item()")),
    ),
    bug(
        "accuracy-of-the-last-batch",
        "E06",
        "EVL604",
        edit(EVAL_CORRECT, EVAL_CORRECT.replace("correct +=", "correct =")),
    ),
    bug(
        "validation-stops-early",
        "E14",
        "EVL605 DAT216",
        edit(EVAL_CORRECT, EVAL_CORRECT.replace("    return", "        if seen >= 64:\n            break\n    return")),
    ),
    bug(
        "best-is-the-worst",
        "own",
        "EVL610",
        edit("start_epoch, best_acc = 0, 0.0", "start_epoch, best_acc, best_loss = 0, 0.0, 0.0"),
        edit(
            "        improved = val_acc > best_acc\n",
            "        improved = val_loss > best_loss\n        best_loss = max(best_loss, val_loss)\n",
        ),
    ),
    # Checkpoints, configuration, seeds
    bug(
        "resume-forgets-the-schedule",
        "C02",
        "CKP014",
        edit('        scheduler.load_state_dict(checkpoint["scheduler"])\n', ""),
    ),
    bug(
        "resume-repeats-an-epoch",
        "C05",
        "CKP015 CKP014",
        edit('checkpoint["epoch"] + 1, checkpoint["best_acc"]', 'checkpoint["epoch"], checkpoint["best_acc"]'),
    ),
    bug(
        "checkpoint-holds-the-arguments",
        "C10",
        "CKP016 CKP014",
        edit('            "epoch": epoch,\n', '            "epoch": epoch,\n            "args": args,\n'),
        edit('best.pt", map_location=args.device)', 'best.pt", map_location=args.device, weights_only=False)'),
    ),
    bug("tilde-on-a-flag", "R01", "CFG501 CFG502", edit("augment=not args.no_augment", "augment=~args.no_augment")),
    bug(
        "flag-of-type-bool",
        "R03",
        "CFG503",
        edit('"--no-augment", action="store_true", help', '"--no-augment", type=bool, default=False, help'),
    ),
    bug(
        "integer-option-with-float-default",
        "R03",
        "CFG504",
        edit('"--weight-decay", type=float', '"--weight-decay", type=int'),
    ),
    bug("option-never-read", "R02", "CFG502", edit("dropout=args.dropout)", "dropout=0.2)")),
    bug(
        "option-shadowed",
        "R06",
        "CFG505 CFG502",
        edit("    args = parse_args()\n", "    args = parse_args()\n    args.lr = 0.02\n"),
    ),
    bug(
        "seed-reset-each-epoch",
        "T11",
        "REP023 DAT205 DAT220",
        edit(TRAIN_CALL, "        set_seed(args.seed)\n" + TRAIN_CALL),
    ),
    bug("cuda-hard-coded", "own", "RUN072", edit(").to(args.device)", ").cuda()"), crashes=True),
    bug("nothing-is-seeded", "R04", "REP021", edit("    set_seed(args.seed)\n", "    random.seed(args.seed)\n")),
]

HEALTHY = [
    # Optimizer and schedule
    healthy(
        "adam-with-slight-coupled-decay",
        "a decay of 1e-5 is where Adam and AdamW hardly differ",
        edit(
            "torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)",
            "torch.optim.Adam(\n"
            "        model.parameters(), lr=0.1 * args.lr, betas=(args.momentum, 0.999), weight_decay=0.02 * "
            "args.weight_decay\n"
            "    )",
        ),
    ),
    healthy(
        "constant-learning-rate",
        "no schedule at all is a choice",
        edit(f"    scheduler = {SCHEDULER}\n", ""),
        edit('        scheduler.load_state_dict(checkpoint["scheduler"])\n', ""),
        edit("        scheduler.step()\n", ""),
        edit('            "scheduler": scheduler.state_dict(),\n', ""),
    ),
    healthy(
        "cosine-counted-in-steps",
        "horizon and stepping are both in batches",
        edit(SCHEDULER, SCHEDULER.replace("args.epochs", "args.epochs * len(train_loader)")),
        edit("        scheduler.step()\n", ""),
        edit("        optimizer.step()\n", "        optimizer.step()\n        scheduler.step()\n"),
        edit(
            "def train_one_epoch(model, loader, criterion, optimizer, device):",
            "def train_one_epoch(model, loader, criterion, optimizer, scheduler, device):",
        ),
        edit("criterion, optimizer, args.device)", "criterion, optimizer, scheduler, args.device)"),
    ),
    healthy(
        "warm-restarts",
        "the learning rate jumps up on purpose at each restart",
        edit(
            SCHEDULER, "torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=max(1, args.epochs // 4))"
        ),
    ),
    healthy(
        "sharpness-aware-minimisation",
        "two backward passes a step: one at the weights, one at the perturbed weights",
        edit(
            UPDATE,
            "        optimizer.zero_grad()\n        loss.backward()\n        shifts = climb(model)\n"
            "        optimizer.zero_grad()\n        criterion(model(images), targets).backward()\n"
            "        with torch.no_grad():\n            for parameter, shift in shifts:\n"
            "                parameter.sub_(shift)\n        optimizer.step()\n",
        ),
        edit(
            "def train_one_epoch(",
            "@torch.no_grad()\ndef climb(model, radius=0.02):\n"
            '    """Move the weights uphill by `radius`; the shift of each."""\n'
            "    graded = [p for p in model.parameters() if p.grad is not None]\n"
            "    norm = torch.stack([p.grad.norm() for p in graded]).norm() + 1e-12\n"
            "    shifts = [(p, radius * p.grad / norm) for p in graded]\n    for parameter, shift in shifts:\n"
            "        parameter.add_(shift)\n    return shifts\n\n\ndef train_one_epoch(",
        ),
    ),
    healthy(
        "learning-rate-finder-first",
        "a copy of the model is swept over learning rates and thrown away",
        edit(
            "    start_epoch, best_acc = 0, 0.0\n",
            "    sweep_learning_rates(copy.deepcopy(model), train_loader, criterion, args.device)\n"
            "    start_epoch, best_acc = 0, 0.0\n",
        ),
        edit("import argparse\n", "import argparse\nimport copy\n"),
        edit(
            "@torch.no_grad()\ndef evaluate",
            "def sweep_learning_rates(model, loader, criterion, device):\n"
            '    """Print the loss while the learning rate grows from 1e-5 to 1."""\n'
            "    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)\n"
            "    growth = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=1e5 ** (1 / len(loader)))\n"
            "    model.train()\n    for images, targets in loader:\n        optimizer.zero_grad()\n"
            "        loss = criterion(model(images.to(device)), targets.to(device))\n        loss.backward()\n"
            "        optimizer.step()\n"
            '        print(f"lr {growth.get_last_lr()[0]:.2e} loss {loss.item():.3f}")\n'
            "        growth.step()\n\n\n@torch.no_grad()\ndef evaluate",
        ),
    ),
    # The step
    healthy(
        "zero-grad-keeps-the-tensors",
        "gradients set to zero instead of None",
        edit("optimizer.zero_grad()", "optimizer.zero_grad(set_to_none=False)"),
    ),
    healthy(
        "gradients-deleted-by-hand",
        "what zero_grad does, written out",
        edit(
            "        optimizer.zero_grad()\n",
            "        for parameter in model.parameters():\n            parameter.grad = None\n",
        ),
    ),
    healthy(
        "clip-by-value",
        "another kind of clipping, at the right place",
        edit(
            "        optimizer.step()\n",
            "        nn.utils.clip_grad_value_(model.parameters(), 0.5)\n        optimizer.step()\n",
        ),
    ),
    healthy(
        "mixup-with-two-losses",
        "the two targets are weighted as the two images are",
        edit(
            "        outputs = model(images)\n        loss = criterion(outputs, targets)\n"
            "        optimizer.zero_grad()\n",
            "        lam = float(np.random.beta(0.2, 0.2))\n"
            "        partner = torch.randperm(len(images), device=device)\n"
            "        outputs = model(lam * images + (1 - lam) * images[partner])\n"
            "        loss = lam * criterion(outputs, targets) + (1 - lam) * criterion(outputs, targets[partner])\n"
            "        optimizer.zero_grad()\n",
        ),
    ),
    # Data
    healthy(
        "last-batch-of-two",
        "the tail of the epoch is tiny and still of use",
        edit(SPLITS, "order[:706], order[706:960], order[960:1220]"),
    ),
    healthy(
        "shuffled-test-loader",
        "the order does not matter to a mean",
        edit(
            "test_set, batch_size=args.batch_size, shuffle=False", "test_set, batch_size=args.batch_size, shuffle=True"
        ),
    ),
    healthy(
        "workers-that-persist",
        "two workers with torch's own seeding",
        edit('"--workers", type=int, default=0', '"--workers", type=int, default=2'),
        edit(
            "shuffle=True, num_workers=args.workers)",
            "shuffle=True, num_workers=args.workers, persistent_workers=True)",
        ),
        edit(
            'default="cuda" if torch.cuda.is_available() else "cpu"',
            'default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]',
        ),
    ),
    healthy(
        "weighted-sampler",
        "classes are balanced by drawing with replacement: an epoch sees some images twice",
        edit(
            "    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True,",
            "    counts = np.bincount(train_set.targets)\n"
            "    sampler = torch.utils.data.WeightedRandomSampler(1.0 / counts[train_set.targets], len(train_set))\n"
            "    train_loader = DataLoader(train_set, batch_size=args.batch_size, sampler=sampler,",
        ),
    ),
    healthy(
        "splits-of-two-views-of-one-data-set",
        "the same images under two transforms, and disjoint indices",
        edit(
            "        Digits(images[train], digits.target[train], train_transform),\n"
            "        Digits(images[val], digits.target[val], eval_transform),\n",
            "        torch.utils.data.Subset(Digits(images, digits.target, train_transform), train.tolist()),\n"
            "        torch.utils.data.Subset(Digits(images, digits.target, eval_transform), val.tolist()),\n",
        ),
    ),
    healthy(
        "dict-batches-by-a-collate-function",
        "batches are dicts made by an own collate function",
        edit("shuffle=True, num_workers=args.workers)", "shuffle=True, num_workers=args.workers, collate_fn=collate)"),
        edit(
            "    for images, targets in loader:\n"
            "        images, targets = images.to(device), targets.to(device)\n        outputs = model(images)\n"
            "        loss = criterion(outputs, targets)\n        optimizer",
            "    for batch in loader:\n"
            '        images, targets = batch["image"].to(device), batch["target"].to(device)\n'
            "        outputs = model(images)\n        loss = criterion(outputs, targets)\n        optimizer",
        ),
        edit(
            "class CNN(",
            "def collate(samples):\n    images, targets = zip(*samples, strict=True)\n"
            '    return {"image": torch.stack(images), "target": torch.tensor(targets)}\n\n\nclass CNN(',
        ),
    ),
    healthy(
        "seed-of-each-epoch",
        "every epoch has its own seed, so that a resumed run repeats it",
        edit(TRAIN_CALL, "        set_seed(args.seed + 1000 * epoch)\n" + TRAIN_CALL),
    ),
    # Evaluation
    healthy(
        "validation-every-fifth-epoch",
        "validation is expensive, so most epochs go without",
        edit(
            "        val_loss, val_acc = evaluate(model, val_loader, criterion, args.device)\n",
            "        if (epoch + 1) % 5 == 0 or epoch + 1 == args.epochs:\n"
            "            val_loss, val_acc = evaluate(model, val_loader, criterion, args.device)\n",
        ),
        edit(
            "start_epoch, best_acc = 0, 0.0\n",
            'start_epoch, best_acc = 0, 0.0\n    val_loss, val_acc = float("nan"), 0.0\n',
        ),
        edit(
            "        improved = val_acc > best_acc\n",
            '        improved = val_acc > best_acc or not (args.output / "best.pt").exists()\n',
        ),
    ),
    healthy(
        "validation-before-training",
        "a first evaluation finds mistakes early",
        edit(
            "    for epoch in range(start_epoch",
            '    print("untrained:", evaluate(model, val_loader, criterion, args.device))\n'
            "    for epoch in range(start_epoch",
        ),
    ),
    healthy(
        "training-images-evaluated-too",
        "accuracy on the training split in eval mode, through a loader of its own",
        edit(
            "        lr = optimizer.param_groups",
            "        fixed_loss, fixed_acc = evaluate(model, fixed_loader, criterion, args.device)\n"
            '        print(f"train split in eval mode: loss {fixed_loss:.4f} acc {fixed_acc:.4f}")\n'
            "        lr = optimizer.param_groups",
        ),
        edit(
            "    model = CNN(",
            "    fixed_set = Digits(train_set.images[:200], train_set.targets[:200], val_set.transform)\n"
            "    fixed_loader = DataLoader(fixed_set, batch_size=args.batch_size)\n\n    model = CNN(",
        ),
    ),
    healthy(
        "mean-of-equal-batches",
        "the batches of validation and test are all full, so their mean is the mean",
        edit(SPLITS, "order[:700], order[700:956], order[960:1216]"),
        edit(
            EVAL_CORRECT,
            EVAL_CORRECT.replace("loss.item() * len(targets)", "loss.item()").replace(
                "total_loss / seen", "total_loss / len(loader)"
            ),
        ),
    ),
    healthy(
        "monte-carlo-dropout-at-test-time",
        "after eval(), dropout alone is switched on to sample predictions",
        edit(
            '    print(f"test loss',
            "    spread = dropout_spread(model, test_loader, args.device)\n"
            '    print(f"spread of 5 dropout samples {spread:.4f}")\n    print(f"test loss',
        ),
        edit(
            "def set_seed(",
            "@torch.no_grad()\ndef dropout_spread(model, loader, device, samples=5):\n"
            '    """Mean standard deviation of the probabilities under dropout."""\n    model.eval()\n'
            "    for module in model.modules():\n        if isinstance(module, nn.Dropout):\n"
            "            module.train()\n    images, _ = next(iter(loader))\n"
            "    draws = torch.stack([model(images.to(device)).softmax(dim=1) for _ in range(samples)])\n"
            "    model.eval()\n    return draws.std(dim=0).mean().item()\n\n\ndef set_seed(",
        ),
    ),
    # Model
    healthy(
        "group-norm-only",
        "no batch statistics anywhere",
        edit("nn.BatchNorm2d(8)", "nn.GroupNorm(2, 8)"),
        edit("nn.BatchNorm2d(16)", "nn.GroupNorm(4, 16)"),
        edit("nn.BatchNorm2d(32)", "nn.GroupNorm(8, 32)"),
    ),
    healthy(
        "channels-last",
        "another memory layout of the same numbers",
        edit(
            "dropout=args.dropout).to(args.device)",
            "dropout=args.dropout).to(args.device, memory_format=torch.channels_last)",
        ),
        edit(
            "        images, targets = images.to(device), targets.to(device)\n",
            "        images, targets = images.to(device, memory_format=torch.channels_last), targets.to(device)\n",
            count=2,
        ),
    ),
    healthy(
        "auxiliary-head",
        "in train mode the model returns two logits, and both are in the loss",
        edit(
            "        outputs = model(images)\n        loss = criterion(outputs, targets)\n        optimizer",
            "        outputs, aux_outputs = model(images)\n"
            "        loss = criterion(outputs, targets) + 0.3 * criterion(aux_outputs, targets)\n"
            "        optimizer",
        ),
        edit(
            "        x = self.features(x)\n        return self.fc(self.dropout(torch.flatten(x, 1)))\n",
            "        x = self.features(x)\n        logits = self.fc(self.dropout(torch.flatten(x, 1)))\n"
            "        return (logits, self.aux(x.mean(dim=(2, 3)))) if self.training else logits\n",
        ),
        edit(
            "        self.fc = nn.Linear(32 * 4 * 4, num_classes)\n",
            "        self.fc = nn.Linear(32 * 4 * 4, num_classes)\n        self.aux = nn.Linear(32, num_classes)\n",
        ),
    ),
    healthy(
        "two-tasks-two-losses",
        "digit and parity are learned together; the model returns a dict",
        edit(
            "        outputs = model(images)\n        loss = criterion(outputs, targets)\n        optimizer",
            '        heads = model(images)\n        outputs = heads["digit"]\n'
            '        parity_loss = nn.functional.binary_cross_entropy_with_logits(heads["odd"].squeeze(1), '
            "(targets % 2).float())\n"
            "        loss = criterion(outputs, targets) + 0.5 * parity_loss\n        optimizer",
        ),
        edit(
            "        outputs = model(images)\n        loss = criterion(outputs, targets)\n        total_loss",
            '        outputs = model(images)["digit"]\n        loss = criterion(outputs, targets)\n        total_loss',
        ),
        edit(
            "        return self.fc(self.dropout(torch.flatten(x, 1)))\n",
            '        x = self.dropout(torch.flatten(x, 1))\n        return {"digit": self.fc(x), "odd": self.odd(x)}\n',
        ),
        edit(
            "        self.fc = nn.Linear(32 * 4 * 4, num_classes)\n",
            "        self.fc = nn.Linear(32 * 4 * 4, num_classes)\n        self.odd = nn.Linear(32 * 4 * 4, 1)\n",
        ),
    ),
    # Program
    healthy(
        "options-consumed-as-a-whole",
        "vars(args) goes into a file of the run, so each option is read",
        edit(
            '    parser.add_argument("--workers"',
            '    parser.add_argument("--note", default="", help="written to the run\'s record")\n'
            '    parser.add_argument("--workers"',
        ),
        edit(
            "    set_seed(args.seed)\n    args.output",
            "    set_seed(args.seed)\n"
            '    print("settings:", {name: str(value) for name, value in vars(args).items()})\n    args.output',
        ),
    ),
    healthy(
        "print-heavy",
        "a line for every batch",
        edit(
            TRAIN_SUMS,
            TRAIN_SUMS.replace(
                "\n\n",
                "\n"
                '        print("batch", len(targets), "loss", loss.item(), "lr", optimizer.param_groups[0]["lr"], '
                "flush=True)\n\n",
            ),
        ),
    ),
]
