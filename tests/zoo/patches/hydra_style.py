"""Bugs and healthy variations of `hydra_style`."""

from ..model import Patches

patches = Patches("hydra_style")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

CONFIG = "conf/config.yaml"

BUGS = [
    bug(
        "hydra-key-never-read",
        "R02",
        "CFG502",
        edit("clip_norm: 1.0\n", "clip_norm: 1.0\nlabel_smoothing: 0.1\n", CONFIG),
    ),
    bug("hydra-clip-hard-coded", "R02", "CFG502", edit("optimizer, cfg.clip_norm)", "optimizer, 1.0)")),
    bug(
        "hydra-epochs-in-two-places",
        "R07",
        "LRS802 CFG505",
        edit("T_max: ${epochs}", "T_max: 100", "conf/scheduler/cosine.yaml"),
    ),
    bug("hydra-schedule-never-stepped", "S04", "LRS801", edit("        scheduler.step()\n", "")),
    bug("hydra-eval-mode-missing", "E01", "EVL601", edit("    model.eval()\n", "")),
    bug(
        "hydra-validation-is-training",
        "D31",
        "DAT207",
        edit(
            "make_data(cfg.data.val_samples, cfg.data.noise, seed=2)",
            "make_data(cfg.data.train_samples, cfg.data.noise, seed=1)",
        ),
    ),
    bug(
        "hydra-mean-of-batch-means",
        "E03",
        "EVL603",
        edit("        total += loss_fn(logits, y).item() * len(y)\n", "        total += loss_fn(logits, y).item()\n"),
        edit("    return total / seen, correct / seen\n", "    return total / len(loader), correct / seen\n"),
    ),
    bug(
        "hydra-layers-in-a-list",
        "M01",
        "MOD107 OPT701 GRD305",
        edit(
            "self.layers = nn.Sequential(*layers, nn.Linear(in_features, num_classes))",
            "self.layers = layers\n        self.head = nn.Linear(in_features, num_classes)",
            "model.py",
        ),
        edit(
            "        return self.layers(x)\n",
            "        for layer in self.layers:\n            x = layer(x)\n        return self.head(x)\n",
            "model.py",
        ),
    ),
    bug(
        "hydra-seed-in-each-epoch",
        "T11",
        "REP023 DAT205",
        edit(
            "        train_loss = train_epoch(",
            "        torch.manual_seed(cfg.seed)\n        train_loss = train_epoch(",
        ),
    ),
]

HEALTHY = [
    healthy(
        "hydra-sgd-group",
        "another group of the configuration is chosen; the unused group's keys are no dead options",
        edit("  - optimizer: adamw\n", "  - optimizer: sgd\n", CONFIG),
    ),
]
