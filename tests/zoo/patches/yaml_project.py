"""Bugs and healthy variations of `yaml_project`."""

from ..model import Patches

patches = Patches("yaml_project")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

SETS = "    train_set = Textures("
VAL_SET = 'Textures(*make_images(cfg["val_samples"], size, classes, seed=2), transform=eval_transform)'
TRAIN_SET = 'Textures(*make_images(cfg["train_samples"], size, classes, seed=1), transform=train_transform)'
RESTORE_OPTIMIZER = '        optimizer.load_state_dict(ckpt["optimizer"])\n'
RESTORE_SCHEDULER = '        scheduler.load_state_dict(ckpt["scheduler"])\n'
RESTORE_COUNTERS = 'ckpt["epoch"] + 1, ckpt["best_acc"], ckpt["bad_epochs"]'
READ_LAST = "ckpt = torch.load(last_path,"
SAVE_BEST = 'torch.save({"model": model.state_dict(), "epoch": epoch, "val_acc": val_acc}, best_path)'
LOAD_BEST = 'model.load_state_dict(torch.load(best_path, map_location=device, weights_only=True)["model"])'
NORMALIZE = 'v2.Normalize(cfg["mean"], cfg["std"])'
BLOCK_TAIL = "        out = self.bn2(self.conv2(out))\n        return F.relu(out + self.shortcut(x))\n"
CRITERION = 'nn.CrossEntropyLoss(label_smoothing=cfg["train"]["label_smoothing"])'
OPTIMIZER_CLASS = "torch.optim.AdamW("

BUGS = [
    # Data
    bug(
        "crop-of-a-whole-batch",
        "D28",
        "DAT217 SRC069",
        edit(
            '    augment = [v2.RandomCrop(cfg["image_size"], padding=cfg["crop_padding"])]\n',
            "    augment = []\n",
            "data.py",
        ),
        edit(
            "            logits = model(images)\n",
            "            if training:\n                images = v2.RandomCrop(16, padding=2)(images)\n"
            "            logits = model(images)\n",
        ),
        edit("from torch.optim.lr_scheduler", "from torchvision.transforms import v2\nfrom torch.optim.lr_scheduler"),
    ),
    bug(
        "view-instead-of-permute",
        "D19",
        "DAT211",
        edit(
            "image, label = self.images[index], self.labels[index]",
            "image, label = self.images[index].view(3, 16, 16), self.labels[index]",
            "data.py",
        ),
        edit(
            "    return (images.clamp(0, 1) * 255).to(torch.uint8), labels\n",
            "    images = (images.clamp(0, 1) * 255).to(torch.uint8)\n"
            "    return images.permute(0, 2, 3, 1).contiguous(), labels  # (n, H, W, 3)\n",
            "data.py",
        ),
    ),
    bug(
        "transform-set-on-a-shared-data-set",
        "D01",
        "DAT201 DAT202",
        edit(VAL_SET, "None", "data.py"),
        edit(
            f"    train_set = {TRAIN_SET}\n",
            "    full = Textures(*make_images(750, size, classes, seed=1), transform=train_transform)\n"
            "    train_set, val_set = torch.utils.data.random_split(full, [600, 150])\n"
            "    val_set.dataset.transform = eval_transform\n",
            "data.py",
        ),
        edit("    val_set = None\n", "", "data.py"),
    ),
    bug(
        "validation-is-a-part-of-training",
        "D09",
        "DAT207",
        edit(VAL_SET, "torch.utils.data.Subset(train_set, range(150))", "data.py"),
    ),
    bug(
        "test-read-from-the-training-seed",
        "D11",
        "DAT207",
        edit(
            'make_images(cfg["test_samples"], size, classes, seed=3)',
            'make_images(cfg["train_samples"], size, classes, seed=1)',
            "data.py",
        ),
    ),
    bug(
        "eval-transform-flips",
        "D26",
        "DAT203",
        edit(
            "return v2.Compose(augment + to_input), v2.Compose(to_input)",
            "return v2.Compose(augment + to_input), v2.Compose(augment[1:] + to_input)",
            "data.py",
        ),
    ),
    bug(
        "mean-and-std-swapped",
        "D13",
        "DAT209 SRC067",
        edit(NORMALIZE, 'v2.Normalize(cfg["std"], cfg["mean"])', "data.py"),
    ),
    bug(
        "dtype-without-scale",
        "D16",
        "DAT209",
        edit("v2.ToDtype(torch.float32, scale=True)", "v2.ToDtype(torch.float32)", "data.py"),
    ),
    bug(
        "splits-with-different-constants",
        "D14",
        "DAT210 SRC067",
        edit(
            "v2.Compose(augment + to_input), v2.Compose(to_input)",
            "v2.Compose(augment + to_input), v2.Compose([to_input[0], v2.Normalize([0.1] * 3, [0.9] * 3)])",
            "data.py",
        ),
    ),
    bug(
        "every-loader-unshuffled",
        "D05",
        "DAT204",
        edit("DataLoader(train_set, shuffle=True,", "DataLoader(train_set, shuffle=False,", "data.py"),
    ),
    bug(
        "loader-defaults-drop-the-last-batch",
        "D22",
        "DAT216 EVL605",
        edit('"num_workers": cfg["num_workers"]}', '"num_workers": cfg["num_workers"], "drop_last": True}', "data.py"),
    ),
    # Model
    bug(
        "skip-connection-detached",
        "M03",
        "GRD304 GRD301",
        edit("out + self.shortcut(x))", "out + self.shortcut(x.detach()))", "model.py"),
    ),
    bug(
        "relu-before-and-after-the-sum",
        "M05",
        "MOD122",
        edit(
            BLOCK_TAIL, BLOCK_TAIL.replace("self.bn2(self.conv2(out))", "F.relu(self.bn2(self.conv2(out)))"), "model.py"
        ),
    ),
    bug(
        "stem-of-another-resolution",
        "M29",
        "MOD125",
        edit(
            "nn.Conv2d(3, channels[0], 3, padding=1, bias=False)",
            "nn.Conv2d(3, channels[0], 7, stride=4, padding=3, bias=False)",
            "model.py",
        ),
    ),
    bug(
        "pooling-mixes-the-batch",
        "M39",
        "MOD104",
        edit(
            "        return self.head(self.dropout(x))\n",
            "        x = x - x.mean(dim=0)\n        return self.head(self.dropout(x))\n",
            "model.py",
        ),
    ),
    bug(
        "stages-in-a-list",
        "M01",
        "MOD107 OPT701 GRD305",
        edit(
            "self.stages = nn.Sequential(*[BasicBlock(i, o, stride=1 if n == 0 else 2) for n, (i, o) in "
            "enumerate(widths)])",
            "self.stages = [BasicBlock(i, o, stride=1 if n == 0 else 2) for n, (i, o) in enumerate(widths)]",
            "model.py",
        ),
        edit(
            "        x = self.stages(self.stem(x))\n",
            "        x = self.stem(x)\n        for stage in self.stages:\n            x = stage(x)\n",
            "model.py",
        ),
    ),
    bug(
        "configured-classes-too-many",
        "R07",
        "LOS911 MOD102 CFG502",
        edit("  channels: [8, 16, 32]\n", "  num_classes: 10\n  channels: [8, 16, 32]\n", "config.yaml"),
        edit('SmallResNet(cfg["data"]["num_classes"],', 'SmallResNet(cfg["model"]["num_classes"],'),
    ),
    # Optimizer and schedule
    bug(
        "adam-where-adamw-was-meant",
        "O09",
        "OPT709",
        edit(OPTIMIZER_CLASS, "torch.optim.Adam("),
        edit("  weight_decay: 0.01\n", "  weight_decay: 0.05\n", "config.yaml"),
    ),
    bug(
        "warmup-not-subtracted-from-the-horizon",
        "S07",
        "LRS802",
        edit("T_max=epochs - warmup_epochs", "T_max=epochs + 8 * warmup_epochs"),
    ),
    bug(
        "epoch-schedule-stepped-per-batch",
        "S02",
        "LRS803 LRS802",
        edit("        scheduler.step()\n", ""),
        edit("optimizer=None, grad_clip=None)", "optimizer=None, scheduler=None, grad_clip=None)"),
        edit(
            "                optimizer.step()\n", "                optimizer.step()\n                scheduler.step()\n"
        ),
        edit("device, optimizer, grad_clip=", "device, optimizer, scheduler, grad_clip="),
    ),
    bug(
        "schedule-stepped-on-improvement-only",
        "S04",
        "LRS801 LRS802 LRS803",
        edit("        scheduler.step()\n", ""),
        edit(
            "            best_acc, bad_epochs = val_acc, 0\n",
            "            best_acc, bad_epochs = val_acc, 0\n            scheduler.step()\n",
        ),
    ),
    # Loop
    bug(
        "clip-before-the-gradients-exist",
        "T02",
        "TRN408",
        edit(
            "                loss.backward()\n"
            "                nn.utils.clip_grad_norm_(model.parameters(), grad_clip)\n",
            "                nn.utils.clip_grad_norm_(model.parameters(), grad_clip)\n"
            "                loss.backward()\n",
        ),
    ),
    bug("never-in-eval-mode", "E01", "EVL601 EVL602", edit("    model.train(training)\n", "    model.train()\n")),
    bug(
        "stray-break",
        "E14",
        "TRN412 EVL605 DAT216",
        edit("            total += labels.size(0)\n", "            total += labels.size(0)\n            break\n"),
    ),
    # Evaluation
    bug(
        "loss-per-batch-over-samples",
        "E04",
        "EVL604 EVL603",
        edit("loss.detach().item() * labels.size(0)", "loss.detach().item()"),
    ),
    bug(
        "mean-of-batch-accuracies",
        "E03",
        "EVL603 EVL604",
        edit("(logits.argmax(dim=1) == labels).sum().item()", "(logits.argmax(dim=1) == labels).float().mean().item()"),
        edit("            total += labels.size(0)\n", "            total += 1\n"),
        edit("loss.detach().item() * labels.size(0)", "loss.detach().item()"),
    ),
    bug(
        "best-compared-in-percent",
        "E13",
        "EVL610 EVL604",
        edit(
            "            best_acc, bad_epochs = val_acc, 0\n", "            best_acc, bad_epochs = 100 * val_acc, 0\n"
        ),
    ),
    # Configuration
    bug(
        "decay-in-the-configuration-only",
        "R02",
        "CFG502",
        edit('weight_decay=cfg["train"]["weight_decay"]', "weight_decay=0.01"),
    ),
    bug(
        "optimizer-choice-never-read",
        "R02",
        "CFG502",
        edit("  lr: 0.005\n", "  optimizer: sgd\n  lr: 0.005\n", "config.yaml"),
    ),
    bug("smoothing-in-the-configuration-only", "R02", "CFG502", edit(CRITERION, "nn.CrossEntropyLoss()")),
    bug(
        "epochs-overwritten-after-reading",
        "R06",
        "CFG505 CFG502",
        edit(
            '    torch.manual_seed(cfg["seed"])\n',
            '    torch.manual_seed(cfg["seed"])\n    cfg["train"]["epochs"] = 15\n',
        ),
    ),
    # Checkpoints
    bug("resume-without-optimizer", "C03", "CKP014", edit(RESTORE_OPTIMIZER, "")),
    bug("resume-without-schedule", "C02", "CKP014", edit(RESTORE_SCHEDULER, "")),
    bug(
        "resume-without-patience",
        "C08",
        "CKP014",
        edit("start_epoch, best_acc, bad_epochs = ckpt", "start_epoch, best_acc = ckpt"),
        edit(RESTORE_COUNTERS, 'ckpt["epoch"] + 1, ckpt["best_acc"]'),
    ),
    bug(
        "resume-forgets-the-best",
        "C08",
        "CKP014",
        edit("start_epoch, best_acc, bad_epochs = ckpt", "start_epoch = ckpt"),
        edit(RESTORE_COUNTERS, 'ckpt["epoch"] + 1'),
    ),
    bug(
        "resume-one-epoch-back", "C05", "CKP015 CKP014", edit(RESTORE_COUNTERS, RESTORE_COUNTERS.replace("+ 1", "+ 0"))
    ),
    bug(
        "resume-from-the-best",
        "C04",
        "CKP015 CKP014",
        edit(READ_LAST, "ckpt = torch.load(best_path,"),
        edit("if last_path.exists():", "if best_path.exists():"),
        edit(RESTORE_OPTIMIZER + RESTORE_SCHEDULER, ""),
        edit('        torch.set_rng_state(ckpt["rng"].cpu())\n', ""),
        edit("start_epoch, best_acc, bad_epochs = ckpt", "start_epoch, best_acc = ckpt"),
        edit(RESTORE_COUNTERS, 'ckpt["epoch"] + 1, ckpt["val_acc"]'),
    ),
    bug(
        "best-without-buffers-loaded-loosely",
        "C07",
        "CKP012 CKP017",
        edit(SAVE_BEST, SAVE_BEST.replace("model.state_dict()", "dict(model.named_parameters())")),
        edit(LOAD_BEST, LOAD_BEST.replace('["model"])', '["model"], strict=False)')),
    ),
    bug(
        "best-saved-under-a-prefix",
        "P02",
        "CKP012 CKP013",
        edit(
            SAVE_BEST,
            SAVE_BEST.replace("model.state_dict()", '{"module." + k: v for k, v in model.state_dict().items()}'),
        ),
        edit(LOAD_BEST, LOAD_BEST.replace('["model"])', '["model"], strict=False)')),
    ),
    bug(
        "whole-checkpoint-loaded-loosely",
        "C06",
        "CKP012",
        edit(
            LOAD_BEST,
            LOAD_BEST.replace('["model"])', ", strict=False)").replace(
                "weights_only=True), strict", "weights_only=True), strict"
            ),
        ),
    ),
]

HEALTHY = [
    healthy(
        "zero-init-residual",
        "each block starts as its shortcut",
        edit(
            "        self.shortcut = nn.Identity()\n",
            "        nn.init.zeros_(self.bn2.weight)\n        self.shortcut = nn.Identity()\n",
            "model.py",
        ),
    ),
    healthy(
        "zero-init-head",
        "the untrained logits are all zero",
        edit(
            "        self.head = nn.Linear(channels[-1], num_classes)\n",
            "        self.head = nn.Linear(channels[-1], num_classes)\n        nn.init.zeros_(self.head.weight)\n"
            "        nn.init.zeros_(self.head.bias)\n",
            "model.py",
        ),
    ),
    healthy(
        "test-time-flips",
        "logits of an image and its mirror image are averaged in evaluation",
        edit(
            "            logits = model(images)\n",
            "            logits = model(images) if training else (model(images) + model(images.flip(-1))) / 2\n",
        ),
    ),
    healthy(
        "gradients-accumulated-over-two-batches",
        "both losses are halved, and the tail counts alone",
        edit(
            "            if training:\n                optimizer.zero_grad(set_to_none=True)\n"
            "                loss.backward()\n"
            "                nn.utils.clip_grad_norm_(model.parameters(), grad_clip)\n"
            "                optimizer.step()\n",
            "            if training:\n                alone = step % 2 == 0 and step + 1 == len(loader)\n"
            "                (loss if alone else loss / 2).backward()\n"
            "                if step % 2 == 1 or alone:\n"
            "                    nn.utils.clip_grad_norm_(model.parameters(), grad_clip)\n"
            "                    optimizer.step()\n                    optimizer.zero_grad(set_to_none=True)\n",
        ),
        edit("for images, labels in loader:", "for step, (images, labels) in enumerate(loader):"),
    ),
    healthy(
        "no-augmentation-by-choice",
        "every augmentation is switched off in the configuration, which still reads each key",
        edit("  flip: true\n", "  flip: false\n", "config.yaml"),
        edit("  crop_padding: 2\n", "  crop_padding: 0\n", "config.yaml"),
    ),
    healthy(
        "bigger-batches-in-evaluation",
        "evaluation needs no gradients and takes twice the batch",
        edit(
            "DataLoader(val_set, shuffle=False, **common)",
            'DataLoader(val_set, batch_size=2 * cfg["batch_size"], num_workers=cfg["num_workers"])',
            "data.py",
        ),
    ),
    healthy(
        "images-decoded-once",
        "the eval transform is applied once, when the set is made",
        edit(
            "        self.transform = transform\n",
            "        self.transform = transform if cached is None else None\n        if cached is not None:\n"
            "            self.images = cached(images)\n",
            "data.py",
        ),
        edit("labels, transform=None):", "labels, transform=None, cached=None):", "data.py"),
        edit("seed=2), transform=eval_transform)", "seed=2), cached=eval_transform)", "data.py"),
    ),
]
