"""Synthetic colour images: one data set object per split, each with its own transform."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2


class Textures(Dataset):
    """Small colour images of textures.

    Args:
        images: (n, 3, H, W), uint8.
        labels: (n,), int64.
        transform: applied to each image when it is read.
    """

    def __init__(self, images, labels, transform=None):
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index], self.labels[index]
        if self.transform is not None:
            image = self.transform(image)
        return image, label


def make_images(n, size, num_classes, seed):
    """Images of `num_classes` textures, symmetric left to right, with random brightness and noise."""
    textures = torch.randn(num_classes, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    textures = F.interpolate(textures + textures.flip(-1), size=(size, size), mode="bicubic")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (n,), generator=generator)
    contrast = torch.rand(n, 1, 1, 1, generator=generator) + 0.5
    noise = torch.randn(n, 3, size, size, generator=generator)
    images = 0.5 + 0.1 * contrast * textures[labels] + 0.25 * noise
    return (images.clamp(0, 1) * 255).to(torch.uint8), labels


def build_transforms(cfg):
    """The training transform, with augmentation, and the transform of validation and test, without."""
    to_input = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(cfg["mean"], cfg["std"])]
    augment = [v2.RandomCrop(cfg["image_size"], padding=cfg["crop_padding"])]
    if cfg["flip"]:
        augment.append(v2.RandomHorizontalFlip())
    return v2.Compose(augment + to_input), v2.Compose(to_input)


def build_loaders(cfg):
    """Loaders of train, validation and test."""
    train_transform, eval_transform = build_transforms(cfg)
    size, classes = cfg["image_size"], cfg["num_classes"]
    train_set = Textures(*make_images(cfg["train_samples"], size, classes, seed=1), transform=train_transform)
    val_set = Textures(*make_images(cfg["val_samples"], size, classes, seed=2), transform=eval_transform)
    test_set = Textures(*make_images(cfg["test_samples"], size, classes, seed=3), transform=eval_transform)

    common = {"batch_size": cfg["batch_size"], "num_workers": cfg["num_workers"]}
    train_loader = DataLoader(train_set, shuffle=True, **common)
    val_loader = DataLoader(val_set, shuffle=False, **common)
    test_loader = DataLoader(test_set, shuffle=False, **common)
    return train_loader, val_loader, test_loader
