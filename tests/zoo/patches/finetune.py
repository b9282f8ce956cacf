"""Bugs and healthy variations of `finetune`."""

from ..model import Patches

patches = Patches("finetune")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

DROP_HEAD = '    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}\n'
LOAD = "    missing, unexpected = model.load_state_dict(state, strict=False)\n"
CHECKS = '    assert set(missing) == {"head.weight", "head.bias"}\n    assert not unexpected\n'
FREEZE = "    for parameter in model.backbone.parameters():\n        parameter.requires_grad = False\n"
EVAL_BACKBONE = "    model.backbone.eval()  # the statistics of the frozen batch norms stay as they are\n"
TRAINABLE = "    trainable = [p for p in model.parameters() if p.requires_grad]\n"

BUGS = [
    bug(
        "names-never-match",
        "C06",
        "CKP012",
        edit(DROP_HEAD, DROP_HEAD.replace("{name: tensor", '{"model." + name: tensor')),
        edit(LOAD + CHECKS, LOAD),
    ),
    bug(
        "data-parallel-prefix-loaded-loosely",
        "P02",
        "CKP012 CKP013",
        edit(
            "torch.save(model.state_dict(), path)",
            "torch.save(nn.DataParallel(model).state_dict(), path)",
            "pretrain.py",
        ),
        edit(
            "import torch.nn.functional as F\n",
            "import torch.nn as nn\nimport torch.nn.functional as F\n",
            "pretrain.py",
        ),
        edit(DROP_HEAD, DROP_HEAD.replace('"head."', '"module.head."')),
        edit(LOAD + CHECKS, LOAD),
    ),
    bug(
        "initialised-after-loading",
        "M34",
        "CKP019",
        edit(
            FREEZE,
            "    for module in model.modules():\n        if isinstance(module, (nn.Conv2d, nn.Linear)):\n"
            "            nn.init.kaiming_normal_(module.weight)\n" + FREEZE,
        ),
    ),
    bug("frozen-statistics-drift", "O06", "OPT711", edit(EVAL_BACKBONE, "")),
    bug(
        "require-grad-misspelt",
        "O04",
        "SRC061",
        edit("        parameter.requires_grad = False\n", "        parameter.require_grad = False\n"),
    ),
    bug(
        "frozen-backbone-decays",
        "O05",
        "OPT710",
        edit(TRAINABLE, "    trainable = list(model.parameters())\n"),
        edit(
            "        loss.backward()\n        optimizer.step()\n",
            "        loss.backward()\n        for parameter in model.backbone.parameters():\n"
            "            parameter.grad = torch.zeros_like(parameter)\n        optimizer.step()\n",
        ),
    ),
    bug("head-frozen-instead", "O03", "GRD303 OPT703", edit(FREEZE, FREEZE.replace("model.backbone", "model.head"))),
    bug(
        "optimizer-of-the-backbone-only",
        "O01",
        "OPT701 OPT703 GRD305 TRN415",
        edit(TRAINABLE, "    trainable = model.backbone.parameters()\n"),
    ),
    bug(
        "head-replaced-after-the-optimizer",
        "O02",
        "OPT701 OPT702 GRD305",
        edit("    scheduler = torch", "    model.head = nn.Linear(32 * 3 * 3, NUM_CLASSES)\n    scheduler = torch"),
    ),
    bug("old-head-kept", "M31", "LOS911", edit("    model = Net(NUM_CLASSES)\n", "    model = Net(8)\n")),
    bug(
        "fine-tuning-data-repeated-for-validation",
        "D31",
        "DAT207",
        edit("make_task(NUM_CLASSES, 120, seed=3)", "make_task(NUM_CLASSES, 250, seed=2)"),
    ),
    bug("step-size-beyond-the-training", "S03", "LRS801 LRS802 LRS803", edit("step_size=4", "step_size=400")),
    bug(
        "evaluation-in-train-mode-of-a-frozen-net",
        "E01",
        "EVL601 OPT711",
        edit("    model.eval()\n    total, correct", "    total, correct"),
        edit(EVAL_BACKBONE, ""),
    ),
]

HEALTHY = [
    healthy(
        "frozen-by-overriding-train",
        "train() leaves the frozen backbone in eval mode",
        edit(EVAL_BACKBONE, ""),
        edit(
            "    def forward(self, x):\n        return self.head",
            "    frozen = False\n\n    def train(self, mode=True):\n        super().train(mode)\n"
            "        if self.frozen:\n            self.backbone.eval()\n        return self\n\n"
            "    def forward(self, x):\n        return self.head",
            "model.py",
        ),
        edit(FREEZE, FREEZE + "    model.frozen = True\n"),
    ),
    healthy(
        "features-under-no-grad",
        "the frozen part needs no graph",
        edit(
            "        loss = criterion(model(images), labels)\n",
            "        with torch.no_grad():\n            features = model.backbone(images)\n"
            "        loss = criterion(model.head(features), labels)\n",
        ),
    ),
    healthy(
        "whole-network-with-two-rates",
        "the pretrained part learns ten times slower",
        edit(FREEZE, ""),
        edit(EVAL_BACKBONE, ""),
        edit(
            TRAINABLE,
            '    trainable = [\n        {"params": model.backbone.parameters(), "lr": 0.002},\n'
            '        {"params": model.head.parameters()},\n    ]\n',
        ),
        edit("SGD(trainable, lr=0.05", "SGD(trainable, lr=0.02"),
    ),
    healthy(
        "thawed-after-some-epochs",
        "the backbone joins the optimizer half way",
        edit(
            "    for epoch in range(EPOCHS):\n"
            "        train_loss = train_epoch(model, train_loader, criterion, optimizer)\n",
            "    for epoch in range(EPOCHS):\n        if epoch == EPOCHS // 2:\n"
            "            model.backbone.requires_grad_(True)\n"
            '            optimizer.add_param_group({"params": list(model.backbone.parameters()), "lr": 0.001})\n'
            "            scheduler.base_lrs.append(0.001)\n"
            "        train_loss = train_epoch(model, train_loader, criterion, optimizer)\n",
        ),
    ),
    healthy(
        "distilled-from-a-frozen-teacher",
        "a teacher in eval mode gives soft targets; the student alone is trained",
        edit(FREEZE, ""),
        edit(EVAL_BACKBONE, ""),
        edit(
            "        loss = criterion(model(images), labels)\n",
            "        with torch.no_grad():\n"
            "            soft = teacher(images)[:, :NUM_CLASSES].div(2.0).softmax(dim=1)\n"
            "        logits = model(images)\n"
            '        distance = nn.functional.kl_div((logits / 2.0).log_softmax(dim=1), soft, reduction="batchmean")\n'
            "        loss = 0.5 * criterion(logits, labels) + 0.5 * 4.0 * distance\n",
        ),
        edit("def train_epoch(model, loader,", "def train_epoch(model, teacher, loader,"),
        edit("train_epoch(model, train_loader,", "train_epoch(model, teacher, train_loader,"),
        edit(
            "    best_acc = 0.0\n",
            "    teacher = Net(8).eval().requires_grad_(False)\n"
            "    teacher.load_state_dict(torch.load(PRETRAINED))\n    best_acc = 0.0\n",
        ),
    ),
]
