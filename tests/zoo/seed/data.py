"""Training and validation images: pictures of digits stand in for a download."""

from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, random_split
from torchvision import transforms

MEAN, STD = (0.305, 0.305, 0.305), (0.36, 0.36, 0.36)


class Pictures(Dataset):
    """PIL images of 32x32 pixels, and a transform that is applied when one is asked for."""

    def __init__(self, transform):
        digits = load_digits()
        to_picture = transforms.Compose([transforms.ToPILImage(), transforms.Resize(32)])
        grey = (digits.images / 16 * 255).astype("uint8")
        self.pictures = [to_picture(image[:, :, None].repeat(3, axis=2)) for image in grey]
        self.targets = digits.target.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.transform(self.pictures[index]), self.targets[index]


def get_dataloaders(batch_size=128, num_workers=4):
    train_transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=0.2, contrast=0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    val_transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    full = Pictures(transform=train_transform)
    train_set, val_set = random_split(full, [1500, len(full) - 1500])
    val_set.dataset.transform = val_transform
    train_loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, num_workers=num_workers)
    val_loader = DataLoader(val_set, batch_size=batch_size, shuffle=False, num_workers=num_workers)
    return train_loader, val_loader
