"""A CNN on synthetic textures, with Lightning."""

import lightning as L
import torch
import torch.nn as nn
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

NUM_CLASSES = 5


class Textures(Dataset):
    """3x16x16 images of five textures in noise."""

    def __init__(self, n, seed, augment=False):
        textures = F.interpolate(torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)), size=16)
        g = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(NUM_CLASSES, (n,), generator=g)
        self.images = (textures[self.labels] + 1.5 * torch.randn(n, 3, 16, 16, generator=g)) / 1.8
        self.augment = augment

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        if self.augment and torch.rand(1).item() < 0.5:
            image = image.flip(-1)
        return image, self.labels[index]


class TextureData(L.LightningDataModule):
    def __init__(self, batch_size=32):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage):
        if stage == "fit":
            self.train_set = Textures(500, seed=1, augment=True)
            self.val_set = Textures(140, seed=2)
        if stage == "test":
            self.test_set = Textures(140, seed=3)

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=self.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test_set, batch_size=self.batch_size)


class TextureClassifier(L.LightningModule):
    def __init__(self, lr=5e-3, weight_decay=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32 * 4 * 4, NUM_CLASSES),
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def evaluation_step(self, batch, stage):
        images, labels = batch
        logits = self(images)
        correct = (logits.argmax(dim=1) == labels).float().mean()
        self.log(f"{stage}_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log(f"{stage}_acc", correct, prog_bar=True, batch_size=len(labels))

    def validation_step(self, batch, batch_idx):
        self.evaluation_step(batch, "val")

    def test_step(self, batch, batch_idx):
        self.evaluation_step(batch, "test")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main():
    L.seed_everything(0, workers=True)
    logger = CSVLogger("logs")
    checkpoint = ModelCheckpoint(dirpath="checkpoints", monitor="val_acc", mode="max", save_last=True)
    trainer = L.Trainer(
        max_epochs=12,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=logger,
        callbacks=[checkpoint, EarlyStopping("val_loss", mode="min", patience=6), LearningRateMonitor("step")],
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TextureData()
    trainer.fit(TextureClassifier(), datamodule=data)
    best = TextureClassifier.load_from_checkpoint(checkpoint.best_model_path)
    trainer.test(best, datamodule=data)


if __name__ == "__main__":
    main()
