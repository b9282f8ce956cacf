"""Bugs and healthy variations of `lightning_style`."""

from ..model import Patches

patches = Patches("lightning_style")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

TRAIN_LOSS = "        loss = F.cross_entropy(logits, labels)\n"

BUGS = [
    bug(
        "lightning-softmax-before-loss",
        "L01",
        "LOS901",
        edit(TRAIN_LOSS, TRAIN_LOSS.replace("logits,", "logits.softmax(dim=1),")),
    ),
    bug("lightning-schedule-per-epoch", "S03", "LRS803 LRS802", edit('"interval": "step"', '"interval": "epoch"')),
    bug(
        "lightning-schedule-not-returned",
        "S04",
        "LRS801",
        edit(
            'return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}',
            "return optimizer",
        ),
    ),
    bug(
        "lightning-head-not-optimised",
        "O01",
        "OPT701 GRD305",
        edit("AdamW(self.parameters(),", "AdamW(self.net[:8].parameters(),"),
    ),
    bug(
        "lightning-checkpoint-of-the-worst",
        "own",
        "EVL610",
        edit('monitor="val_acc", mode="max"', 'monitor="val_acc", mode="min"'),
    ),
    bug(
        "lightning-validation-drops-last",
        "D22",
        "DAT216 EVL605",
        edit(
            "DataLoader(self.val_set, batch_size=self.batch_size)",
            "DataLoader(self.val_set, batch_size=self.batch_size, drop_last=True)",
        ),
    ),
    bug(
        "lightning-validation-is-training",
        "D31",
        "DAT207",
        edit("self.val_set = Textures(140, seed=2)", "self.val_set = Textures(500, seed=1)"),
    ),
    bug(
        "lightning-validation-augmented",
        "D03",
        "DAT203",
        edit("self.val_set = Textures(140, seed=2)", "self.val_set = Textures(140, seed=2, augment=True)"),
    ),
    bug(
        "lightning-not-shuffled",
        "D05",
        "DAT204",
        edit(
            "DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)",
            "DataLoader(self.train_set, batch_size=self.batch_size)",
        ),
    ),
    bug(
        "lightning-functional-dropout",
        "M22",
        "SRC070 MOD105",
        edit("        return self.net(x)\n", "        return self.net(F.dropout(x, 0.1))\n"),
    ),
    bug(
        "lightning-loss-detached",
        "L09",
        "LOS905 GRD305 TRN415",
        edit("        return loss\n", "        return loss.detach().requires_grad_()\n"),
    ),
]

HEALTHY = [
    healthy(
        "lightning-cosine-per-epoch",
        "a cosine over the epochs, stepped once an epoch, which is Lightning's default",
        edit(
            "torch.optim.lr_scheduler.OneCycleLR(\n"
            "            optimizer, max_lr=self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches\n"
            "        )",
            "torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs)",
        ),
        edit('"interval": "step"', '"interval": "epoch"'),
    ),
    healthy(
        "lightning-accumulates",
        "Lightning divides the loss and steps at the tail itself",
        edit(
            "        gradient_clip_val=1.0,\n", "        gradient_clip_val=1.0,\n        accumulate_grad_batches=2,\n"
        ),
    ),
]
