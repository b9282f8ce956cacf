"""Binary segmentation of ellipses with a small U-Net."""

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

EPOCHS = 10
BATCH_SIZE = 16


class Ellipses(Dataset):
    """Noisy images, (1, 24, 24), of a bright ellipse, and its mask, (1, 24, 24), of 0 and 1."""

    def __init__(self, n, seed, flip=False):
        g = torch.Generator().manual_seed(seed)
        center = 6 + 12 * torch.rand(n, 2, 1, 1, generator=g)
        radius = 3 + 5 * torch.rand(n, 2, 1, 1, generator=g)
        rows, cols = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
        distance = ((rows - center[:, 0]) / radius[:, 0]) ** 2 + ((cols - center[:, 1]) / radius[:, 1]) ** 2
        self.masks = (distance < 1).float().unsqueeze(1)
        self.images = 2 * self.masks - 0.5 + torch.randn(self.masks.shape, generator=g)
        self.flip = flip

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, mask = self.images[index], self.masks[index]
        if self.flip and torch.rand(1).item() < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return image, mask


def double_conv(in_channels, out_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Two levels; one logit a pixel."""

    def __init__(self, width=8):
        super().__init__()
        self.down1 = double_conv(1, width)
        self.down2 = double_conv(width, 2 * width)
        self.bottom = double_conv(2 * width, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.up2 = double_conv(4 * width, width)
        self.up1 = double_conv(2 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        x1 = self.down1(x)
        x2 = self.down2(self.pool(x1))
        x = self.bottom(self.pool(x2))
        x = self.up2(torch.cat([x2, self.upsample(x)], dim=1))
        x = self.up1(torch.cat([x1, self.upsample(x)], dim=1))
        return self.out(x)


def train_epoch(model, loader, criterion, optimizer):
    model.train()
    total, count = 0.0, 0
    for images, masks in loader:
        logits = model(images)
        loss = criterion(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(images)
        count += len(images)
    return total / count


@torch.no_grad()
def evaluate(model, loader, criterion):
    """Mean loss a sample, and intersection over union of all pixels of the set."""
    model.eval()
    total, count, intersection, union = 0.0, 0, 0, 0
    for images, masks in loader:
        logits = model(images)
        total += criterion(logits, masks).item() * len(images)
        count += len(images)
        predicted, true = torch.sigmoid(logits) > 0.5, masks > 0.5
        intersection += (predicted & true).sum().item()
        union += (predicted | true).sum().item()
    return total / count, intersection / union


def main():
    torch.manual_seed(0)
    train_loader = DataLoader(Ellipses(200, seed=1, flip=True), batch_size=BATCH_SIZE, shuffle=True)
    val_loader = DataLoader(Ellipses(50, seed=2), batch_size=BATCH_SIZE)
    model = UNet()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=EPOCHS, power=0.9)
    best_iou = 0.0
    for epoch in range(EPOCHS):
        train_loss = train_epoch(model, train_loader, criterion, optimizer)
        val_loss, val_iou = evaluate(model, val_loader, criterion)
        scheduler.step()
        print(f"epoch {epoch}: train {train_loss:.4f}, val {val_loss:.4f}, IoU {val_iou:.4f}")
        if val_iou > best_iou:
            best_iou = val_iou
            torch.save(model.state_dict(), "unet_best.pth")
    model.load_state_dict(torch.load("unet_best.pth"))
    print("IoU of the best epoch:", evaluate(model, val_loader, criterion)[1])


if __name__ == "__main__":
    main()
