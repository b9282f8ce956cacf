"""Bugs and healthy variations of `image_folder`."""

from ..model import Patches

patches = Patches("image_folder")
edit, bug, healthy = patches.edit, patches.bug, patches.healthy

CLASSES = "sorted(folder.name for folder in root.iterdir() if folder.is_dir())"
TO_TENSOR = "torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))"
SAMPLES = '[(path, self.class_to_idx[path.parent.name]) for path in sorted(root.glob("*/*.png"))]'
SEED_WORKER = "    np.random.seed(seed)\n    random.seed(seed)\n\n"
VAL_ACC = "(logits.argmax(1) == labels).float().mean().item()"

BUGS = [
    bug(
        "classes-in-the-order-of-the-file-system",
        "D20",
        "SRC065 DAT212",
        edit(CLASSES, "[folder.name for folder in root.iterdir() if folder.is_dir()]"),
    ),
    bug(
        "classes-numbered-differently-in-validation",
        "D20",
        "DAT212",
        edit(CLASSES, f"{CLASSES} if augment else list(COLOURS)"),
    ),
    bug(
        "hidden-folder-becomes-a-class",
        "D23",
        "DAT215 DAT214 LOS911",
        edit(
            '        write_images(ROOT / "val", 100, seed=2)\n',
            '        write_images(ROOT / "val", 100, seed=2)\n'
            '        (ROOT / "train" / ".ipynb_checkpoints").mkdir()\n'
            '        (ROOT / "val" / ".ipynb_checkpoints").mkdir()\n',
        ),
    ),
    bug(
        "labels-from-a-list-in-another-order",
        "D30",
        "DAT213 TRN415",
        edit(
            SAMPLES,
            "list(\n"
            '            zip(sorted(root.glob("*/*.png"), key=lambda path: path.name), '
            'sorted(self.class_to_idx[path.parent.name] for path in root.glob("*/*.png")), strict=True)\n'
            "        )",
        ),
    ),
    bug("image-reshaped-not-transposed", "D19", "DAT211", edit("image.transpose(2, 0, 1)", "image.reshape(3, 16, 16)")),
    bug("images-not-scaled-to-one", "D16", "DAT209", edit("dtype=np.float32) / 255.0", "dtype=np.float32)")),
    bug(
        "workers-share-one-numpy-seed",
        "D08",
        "DAT206 DAT220",
        edit(SEED_WORKER, "    np.random.seed(42)\n    random.seed(42)\n\n"),
        edit("        persistent_workers=True,\n", ""),
    ),
    bug(
        "one-seed-for-all-workers-kept-alive",
        "D07",
        "DAT206",
        edit(SEED_WORKER, "    np.random.seed(42)\n    random.seed(42)\n\n"),
    ),
    bug(
        "validation-folder-is-the-training-folder",
        "D31",
        "DAT207",
        edit('ImageFolder(ROOT / "val", augment=False)', 'ImageFolder(ROOT / "train", augment=False)'),
    ),
    bug(
        "validation-images-augmented",
        "D03",
        "DAT203",
        edit('ImageFolder(ROOT / "val", augment=False)', 'ImageFolder(ROOT / "val", augment=True)'),
    ),
    bug(
        "augmentation-result-thrown-away",
        "D04",
        "DAT201 DAT202",
        edit("            image = self.flip_and_shift(image)\n", "            self.flip_and_shift(image)\n"),
    ),
    bug(
        "normalised-in-training-only",
        "D14",
        "DAT210 DAT203",
        edit(
            "        image = (image - MEAN) / STD\n",
            "        if self.augment:\n            image = (image - MEAN) / STD\n",
        ),
    ),
    bug(
        "blue-and-red-exchanged-in-validation",
        "D18",
        "DAT210 SRC066",
        edit(
            "        if self.augment:\n            image = self.flip_and_shift(image)\n",
            "        if self.augment:\n            image = self.flip_and_shift(image)\n        else:\n"
            "            image = image[:, :, ::-1]\n",
        ),
    ),
    bug(
        "one-class-without-training-images",
        "D27",
        "DAT215",
        edit(
            "        self.augment = augment\n",
            "        if augment:\n"
            '            self.samples = [sample for sample in self.samples if sample[0].parent.name != "sand"]\n'
            "        self.augment = augment\n",
        ),
    ),
    bug(
        "predictions-in-train-mode", "E01", "EVL601", edit("    model.eval()\n    logits, labels", "    logits, labels")
    ),
    bug(
        "accuracy-of-logits-over-samples",
        "E07",
        "EVL604",
        edit(VAL_ACC, "(logits.softmax(0).argmax(1) == labels).sum().item() / BATCH_SIZE"),
    ),
    bug(
        "decay-to-nothing-in-one-epoch",
        "S02",
        "LRS803 LRS802 OPT705",
        edit("        optimizer.step()\n", "        optimizer.step()\n        scheduler.step()\n"),
        edit("        scheduler.step()\n        print", "        print"),
        edit(
            "def train(model, loader, criterion, optimizer):",
            "def train(model, loader, criterion, optimizer, scheduler):",
        ),
        edit(
            "train(model, train_loader, criterion, optimizer)",
            "train(model, train_loader, criterion, optimizer, scheduler)",
        ),
    ),
]

HEALTHY = [
    healthy(
        "sorted-by-name-elsewhere",
        "the listing is unsorted and sorted right after",
        edit(CLASSES, "[folder.name for folder in root.iterdir() if folder.is_dir()]\n        self.classes.sort()"),
    ),
    healthy(
        "no-workers",
        "augmentation by NumPy in the main process, seeded once",
        edit("        num_workers=2,\n        worker_init_fn=seed_worker,\n        persistent_workers=True,\n", ""),
    ),
    healthy(
        "generator-for-the-order",
        "the order comes from a generator of its own, made once",
        edit("        shuffle=True,\n", "        shuffle=True,\n        generator=torch.Generator().manual_seed(0),\n"),
    ),
]
