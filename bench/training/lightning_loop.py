"""The plain loop's model and batches in Lightning's Trainer, with its default logger and checkpoints.

The progress bar is off, as train.py shows none either where the output is no terminal.
"""

from __future__ import annotations

import lightning
import torch
import torch.nn.functional as F
from peer import Task, loaders_of, model_of, optimizer_of, task_from_arguments
from torch import Tensor


class Classifier(lightning.LightningModule):
    """The model, its loss and its metrics."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.model = task, model_of(task)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy of a batch; Lightning takes the means over the epoch."""
        images, labels = batch
        logits = self.model(images)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def on_validation_epoch_end(self) -> None:
        """Note the time, except after the trial batches before the first epoch."""
        if not self.trainer.sanity_checking:
            accuracy = float(self.trainer.callback_metrics["val_accuracy"])
            self.task.end_of_epoch(self.current_epoch + 1, accuracy)

    def configure_optimizers(self) -> dict[str, object]:
        """The optimizer, and a cosine over all epochs."""
        optimizer = optimizer_of(self.task, self.model)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.task.epochs)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def train(task: Task) -> None:
    trainer = lightning.Trainer(max_epochs=task.epochs, devices=1, enable_progress_bar=False)
    trainer.fit(Classifier(task), *loaders_of(task))


if __name__ == "__main__":
    train(task_from_arguments())
