"""Bugs and healthy variations of `notebook_module`."""

from ..model import Patches

patches = Patches("notebook_module")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

TRAIN_LOSS = "    loss = F.cross_entropy(out, yb)\n"
CONSTRUCT_OPTIMIZER = "torch.optim.Adam(model.parameters(), lr=MAX_LR)"
CONSTRUCT_SCHEDULER = "OneCycleLR(opt, max_lr=MAX_LR, total_steps=EPOCHS * len(train_dl))"
KEEP_BEST = "{name: tensor.clone() for name, tensor in model.state_dict().items()}"
FORWARD_TAIL = "        x = F.dropout(x, 0.25, training=self.training)\n        return self.fc2(x)\n"
EVAL_CORRECT = "            correct += (out.argmax(dim=1) == yb).sum().item()\n"
TRAIN_STEP = "        loss.backward()\n        opt.step()\n        sched.step()\n"

BUGS = [
    # Loss
    bug(
        "softmax-before-functional-loss",
        "L01",
        "LOS901",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("out,", "F.softmax(out, dim=1),")),
    ),
    bug(
        "softmax-over-the-batch",
        "L03",
        "LOS909 LOS901",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("cross_entropy(out,", "nll_loss(F.log_softmax(out, dim=0),")),
    ),
    bug("nll-of-raw-logits", "L04", "LOS902 LOS903", edit(TRAIN_LOSS, TRAIN_LOSS.replace("cross_entropy", "nll_loss"))),
    bug(
        "loss-of-a-detached-prediction",
        "L09",
        "LOS905 GRD305 TRN415",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("out,", "out.detach().requires_grad_(),")),
    ),
    bug(
        "loss-wrapped-in-a-new-tensor",
        "L09",
        "LOS905 GRD305 TRN415",
        edit(TRAIN_LOSS, TRAIN_LOSS + "        loss = torch.tensor(loss.item(), requires_grad=True)\n"),
    ),
    bug(
        "loss-clamped", "L10", "LOS906 GRD305 TRN415", edit(TRAIN_LOSS, TRAIN_LOSS.replace("yb)", "yb).clamp(max=1.0)"))
    ),
    bug(
        "loss-summed-over-the-batch",
        "L08",
        "LOS904 TRN401",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("yb)", 'yb, reduction="sum")')),
    ),
    bug(
        "log-of-softmax",
        "L06",
        "LOS908",
        edit(TRAIN_LOSS, "    loss = -torch.log(F.softmax(out, dim=1))[torch.arange(len(yb)), yb].mean()\n"),
    ),
    # The step
    bug(
        "step-before-backward",
        "T02",
        "TRN404 TRN405 TRN406 GRD305",
        edit(TRAIN_STEP, "        opt.step()\n        loss.backward()\n        sched.step()\n"),
    ),
    # Schedule
    bug(
        "one-cycle-stepped-per-epoch",
        "S03",
        "LRS803 LRS802",
        edit(TRAIN_STEP, TRAIN_STEP.replace("        sched.step()\n", "")),
        edit("    history.append(", "    sched.step()\n    history.append("),
    ),
    bug(
        "one-cycle-horizon-in-samples", "S01", "LRS802 LRS803", edit("EPOCHS * len(train_dl)", "EPOCHS * len(train_ds)")
    ),
    bug("one-cycle-never-stepped", "S04", "LRS801", edit(TRAIN_STEP, TRAIN_STEP.replace("        sched.step()\n", ""))),
    bug(
        "schedule-of-another-optimizer",
        "S12",
        "LRS804",
        edit(CONSTRUCT_SCHEDULER, CONSTRUCT_SCHEDULER.replace("(opt,", "(torch.optim.Adam(model.parameters()),")),
    ),
    bug(
        "optimizer-made-anew-each-epoch",
        "S12",
        "LRS804 LRS801",
        edit(
            "    model.train()\n    running_loss",
            "    opt = torch.optim.Adam(model.parameters(), lr=MAX_LR)\n    model.train()\n    running_loss",
        ),
    ),
    # Optimizer
    bug(
        "betas-swapped",
        "O10",
        "OPT706",
        edit(CONSTRUCT_OPTIMIZER, "torch.optim.Adam(model.parameters(), lr=MAX_LR, betas=(0.999, 0.9))"),
        edit("total_steps=EPOCHS * len(train_dl))", "total_steps=EPOCHS * len(train_dl), cycle_momentum=False)"),
    ),
    bug(
        "adam-with-strong-coupled-decay",
        "O09",
        "OPT709",
        edit(CONSTRUCT_OPTIMIZER, "torch.optim.Adam(model.parameters(), lr=MAX_LR, weight_decay=0.05)"),
    ),
    # Data
    bug("validation-tensors-not-normalised", "D14", "DAT210", edit("x_valid = (x_valid - mean) / std\n", "")),
    bug(
        "training-images-permuted-without-their-labels",
        "D21",
        "DAT213 TRN415",
        edit(
            "train_ds = TensorDataset(x_train, y_train)",
            "train_ds = TensorDataset(x_train[torch.randperm(len(x_train))], y_train)",
        ),
    ),
    bug(
        "validation-taken-from-training-tensors",
        "D09",
        "DAT207",
        edit("valid_ds = TensorDataset(x_valid, y_valid)", "valid_ds = TensorDataset(x_train[-250:], y_train[-250:])"),
    ),
    bug(
        "loaders-made-by-one-helper-drop-last",
        "D22",
        "DAT216 EVL605",
        edit(
            "valid_dl = DataLoader(valid_ds, batch_size=2 * BATCH_SIZE)",
            "valid_dl = DataLoader(valid_ds, batch_size=2 * BATCH_SIZE, drop_last=True)",
        ),
    ),
    # Model
    bug("functional-dropout-always-on", "M22", "SRC070 MOD105", edit(", training=self.training)", ")")),
    bug(
        "batch-norm-without-running-statistics",
        "M28",
        "MOD104",
        edit("nn.BatchNorm1d(64)", "nn.BatchNorm1d(64, track_running_stats=False)"),
    ),
    bug(
        "functional-batch-norm-always-training",
        "M28",
        "MOD104 MOD111 EVL602",
        edit("self.norm(self.fc1(x.flatten(1)))", "F.batch_norm(self.fc1(x.flatten(1)), None, None, training=True)"),
        edit("        self.norm = nn.BatchNorm1d(64)\n", ""),
    ),
    bug(
        "layers-in-a-python-list",
        "M01",
        "MOD107 OPT701 GRD305",
        edit(
            "        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)\n"
            "        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)\n",
            "        self.convs = [nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)]\n",
        ),
        edit(
            "        x = F.max_pool2d(F.relu(self.conv1(x)), 2)\n        x = F.max_pool2d(F.relu(self.conv2(x)), 2)\n",
            "        for conv in self.convs:\n            x = F.max_pool2d(F.relu(conv(x)), 2)\n",
        ),
    ),
    bug(
        "layer-never-used",
        "M02",
        "GRD301 GRD305",
        edit("        self.fc2 = ", "        self.fc3 = nn.Linear(64, 64)\n        self.fc2 = "),
    ),
    bug(
        "relu-twice",
        "M05",
        "MOD122",
        edit("x = F.relu(self.norm(self.fc1(x.flatten(1))))", "x = F.relu(F.relu(self.norm(self.fc1(x.flatten(1)))))"),
    ),
    bug(
        "all-weights-constant",
        "M35",
        "TRN402 TRN415 MOD108 GRD301",
        edit(
            "model = Net().to(device)\n",
            "model = Net().to(device)\nfor p in model.parameters():\n    nn.init.constant_(p, 0.0)\n",
        ),
    ),
    bug(
        "input-overwritten-with-zeros",
        "M42",
        "MOD108 TRN415 TRN402",
        edit(
            "        x = F.max_pool2d(F.relu(self.conv1(x)), 2)\n",
            "        x = torch.zeros_like(x)\n        x = F.max_pool2d(F.relu(self.conv1(x)), 2)\n",
        ),
    ),
    # Evaluation
    bug("train-mode-in-evaluation", "E02", "EVL601 EVL602", edit("    model.eval()\n", "    model.train()\n")),
    bug(
        "accuracy-over-the-number-of-batches",
        "E04",
        "EVL604",
        edit("return loss / n, correct / n", "return loss / n, correct / len(dl)"),
    ),
    bug(
        "argmax-over-the-batch",
        "E07",
        "EVL604",
        edit("(out.argmax(dim=1) == yb).sum().item()", "(out.argmax(dim=0)[:1] == yb).sum().item()"),
    ),
    bug(
        "shuffled-predictions-against-stored-labels",
        "D29",
        "EVL604",
        edit(
            "valid_dl = DataLoader(valid_ds, batch_size=2 * BATCH_SIZE)",
            "valid_dl = DataLoader(valid_ds, batch_size=2 * BATCH_SIZE, shuffle=True)",
        ),
        edit("    loss, correct, n = 0.0, 0, 0\n", "    loss, predictions, n = 0.0, [], 0\n"),
        edit(EVAL_CORRECT, "            predictions.append(out.argmax(dim=1).cpu())\n"),
        edit(
            "    return loss / n, correct / n\n",
            "    correct = (torch.cat(predictions) == dl.dataset.tensors[1]).sum().item()\n"
            "    return loss / n, correct / n\n",
        ),
    ),
    bug("best-weights-kept-by-reference", "C01", "CKP011", edit(KEEP_BEST, "model.state_dict()")),
    bug("best-weights-copied-shallowly", "C01", "CKP011", edit(KEEP_BEST, "dict(model.state_dict())")),
    bug(
        "softmax-without-dim",
        "own",
        "SRC068 LOS908",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("cross_entropy(out,", "nll_loss(torch.log(F.softmax(out)),")),
    ),
]

HEALTHY = [
    healthy(
        "log-softmax-and-nll",
        "cross-entropy in two calls",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("cross_entropy(out,", "nll_loss(F.log_softmax(out, dim=1),")),
    ),
    healthy(
        "log-softmax-and-cross-entropy",
        "log_softmax twice is log_softmax once",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("cross_entropy(out,", "cross_entropy(F.log_softmax(out, dim=1),")),
    ),
    healthy(
        "sum-divided-by-hand",
        "the mean, written out",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("yb)", 'yb, reduction="sum") / len(yb)')),
    ),
    healthy(
        "label-smoothing",
        "smoothing in training only",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("yb)", "yb, label_smoothing=0.1)")),
    ),
    healthy(
        "double-precision",
        "model and data in float64",
        edit("model = Net().to(device)", "model = Net().to(device).double()"),
        edit(
            "x_train = (x_train - mean) / std\nx_valid = (x_valid - mean) / std\nx_test = (x_test - mean) / std\n",
            "x_train = ((x_train - mean) / std).double()\nx_valid = ((x_valid - mean) / std).double()\n"
            "x_test = ((x_test - mean) / std).double()\n",
        ),
    ),
    healthy(
        "iterable-data-set",
        "the training data come as a stream without length",
        edit(
            "train_dl = DataLoader(train_ds, batch_size=BATCH_SIZE, shuffle=True, drop_last=True)",
            "train_dl = DataLoader(Stream(train_ds), batch_size=BATCH_SIZE, drop_last=True)",
        ),
        edit(
            "train_ds = TensorDataset(x_train, y_train)\n",
            "\n\nclass Stream(IterableDataset):\n    def __init__(self, dataset):\n"
            "        self.dataset = dataset\n\n    def __iter__(self):\n"
            "        for index in torch.randperm(len(self.dataset)).tolist():\n"
            "            yield self.dataset[index]\n\n\ntrain_ds = TensorDataset(x_train, y_train)\n",
        ),
        edit("EPOCHS * len(train_dl)", "EPOCHS * (len(train_ds) // BATCH_SIZE)"),
        edit("import DataLoader, TensorDataset", "import DataLoader, IterableDataset, TensorDataset"),
    ),
    healthy(
        "sampler-of-ones-own",
        "batches of similar brightness in random order, every image once",
        edit(
            "train_dl = DataLoader(train_ds, batch_size=BATCH_SIZE, shuffle=True, drop_last=True)",
            "train_dl = DataLoader(train_ds, batch_sampler=Buckets(x_train.mean(dim=(1, 2, 3)), BATCH_SIZE))",
        ),
        edit(
            "train_ds = TensorDataset(x_train, y_train)\n",
            "\n\nclass Buckets(Sampler):\n    def __init__(self, keys, batch_size):\n"
            "        self.keys, self.batch_size = keys, batch_size\n\n    def __len__(self):\n"
            "        return -(-len(self.keys) // self.batch_size)\n\n    def __iter__(self):\n"
            "        order = (self.keys + 0.3 * torch.randn(len(self.keys))).argsort()\n"
            "        batches = order.split(self.batch_size)\n"
            "        for number in torch.randperm(len(batches)).tolist():\n"
            "            yield batches[number].tolist()\n\n\ntrain_ds = TensorDataset(x_train, y_train)\n",
        ),
        edit("import DataLoader, TensorDataset", "import DataLoader, Sampler, TensorDataset"),
    ),
    healthy(
        "class-weights",
        "rare classes weigh more in training",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("yb)", "yb, weight=class_weights)")),
        edit(
            "history = []\n",
            "history = []\nclass_weights = (len(y_train) / (NUM_CLASSES * y_train.bincount())).to(device)\n",
        ),
    ),
    healthy(
        "focal-loss",
        "easy samples weigh less, and the loss is still a mean",
        edit(
            TRAIN_LOSS,
            "    log_p = F.log_softmax(out, dim=1).gather(1, yb.unsqueeze(1)).squeeze(1)\n"
            "        loss = (-((1 - log_p.exp()) ** 2) * log_p).mean()\n",
        ),
    ),
    healthy(
        "step-schedule-without-momentum-cycling",
        "OneCycleLR with the momentum left alone",
        edit("total_steps=EPOCHS * len(train_dl))", "total_steps=EPOCHS * len(train_dl), cycle_momentum=False)"),
    ),
]
