"""Bugs and healthy variations of `segmentation`."""

from ..model import Patches

patches = Patches("segmentation")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

CRITERION = "criterion = nn.BCEWithLogitsLoss()"
TRAIN_LOSS = "        loss = criterion(logits, masks)\n"
IOU = "        intersection += (predicted & true).sum().item()\n        union += (predicted | true).sum().item()\n"

BUGS = [
    bug(
        "sigmoid-before-bce-with-logits",
        "L04",
        "LOS902 LOS901 MOD110",
        edit("        return self.out(x)\n", "        return torch.sigmoid(self.out(x))\n"),
        edit("torch.sigmoid(logits) > 0.5", "logits > 0.5"),
    ),
    bug(
        "plain-bce-of-clamped-logits",
        "L04",
        "LOS902",
        edit(CRITERION, "criterion = nn.BCELoss()"),
        edit("criterion(logits, masks)", "criterion(logits.clamp(0, 1), masks)", count=2),
    ),
    bug(
        "softmax-over-one-channel",
        "M09",
        "MOD120 LOS901 LOS902",
        edit("        return self.out(x)\n", "        return self.out(x).softmax(dim=1)\n"),
        edit("torch.sigmoid(logits) > 0.5", "logits > 0.5"),
    ),
    bug(
        "cross-entropy-over-one-channel",
        "L04",
        "LOS902 TRN415 GRD305",
        edit(CRITERION, "criterion = nn.CrossEntropyLoss()"),
    ),
    bug(
        "masks-broadcast-against-logits",
        "L12",
        "LOS907",
        edit(TRAIN_LOSS, "        loss = nn.functional.mse_loss(torch.sigmoid(logits), masks[:, 0])\n"),
    ),
    bug(
        "mask-not-flipped-with-the-image",
        "D30",
        "DAT222",
        edit("image, mask = image.flip(-1), mask.flip(-1)", "image = image.flip(-1)"),
    ),
    bug("validation-flips-at-random", "D26", "DAT203", edit("Ellipses(50, seed=2)", "Ellipses(50, seed=2, flip=True)")),
    bug("iou-of-the-last-batch", "E06", "EVL604", edit(IOU, IOU.replace("+=", "="))),
    bug("pixel-loss-summed", "L08", "LOS904", edit(CRITERION, 'criterion = nn.BCEWithLogitsLoss(reduction="sum")')),
    bug(
        "decoder-not-optimised",
        "O01",
        "OPT701 GRD305",
        edit(
            "RMSprop(model.parameters(),",
            "RMSprop([*model.down1.parameters(), *model.down2.parameters(), *model.bottom.parameters()],",
        ),
    ),
    bug(
        "skip-of-the-decoder-detached",
        "M03",
        "GRD304",
        edit("torch.cat([x1, self.upsample(x)], dim=1)", "torch.cat([x1.detach(), self.upsample(x)], dim=1)"),
    ),
    bug(
        "decoder-level-never-used",
        "M02",
        "GRD301 GRD305",
        edit(
            "        self.out = nn.Conv2d(width, 1, 1)\n",
            "        self.out = nn.Conv2d(width, 1, 1)\n        self.up0 = double_conv(width, width)\n",
        ),
    ),
    bug("no-gradient-step-in-segmentation", "O13", "TRN405 GRD305", edit("        optimizer.step()\n", "")),
    bug("eval-mode-left-on-in-segmentation", "T06", "TRN407", edit("    model.train()\n", "")),
]

HEALTHY = [
    healthy(
        "dice-added-to-bce",
        "two losses of one output, the second on probabilities",
        edit(
            TRAIN_LOSS,
            "        probability = torch.sigmoid(logits)\n"
            "        overlap = 2 * (probability * masks).sum(dim=(1, 2, 3)) + 1\n"
            "        dice = overlap / (probability.sum(dim=(1, 2, 3)) + masks.sum(dim=(1, 2, 3)) + 1)\n"
            "        loss = criterion(logits, masks) + (1 - dice).mean()\n",
        ),
    ),
    healthy(
        "sigmoid-and-plain-bce",
        "probabilities into BCELoss is the right pair",
        edit(CRITERION, "criterion = nn.BCELoss()"),
        edit("        return self.out(x)\n", "        return torch.sigmoid(self.out(x))\n"),
        edit("torch.sigmoid(logits) > 0.5", "logits > 0.5"),
    ),
    healthy(
        "positive-pixels-weigh-more",
        "pos_weight makes up for few positive pixels",
        edit(CRITERION, "criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))"),
    ),
    healthy(
        "two-channels-and-cross-entropy",
        "background and object as two classes",
        edit("nn.Conv2d(width, 1, 1)", "nn.Conv2d(width, 2, 1)"),
        edit(CRITERION, "criterion = nn.CrossEntropyLoss()"),
        edit("criterion(logits, masks)", "criterion(logits, masks[:, 0].long())", count=2),
        edit("torch.sigmoid(logits) > 0.5, masks > 0.5", "logits.argmax(dim=1, keepdim=True) == 1, masks > 0.5"),
    ),
]
