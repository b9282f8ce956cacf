"""Where training stands."""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where training stands; all of it is in every checkpoint.

    Args:
        epoch, step: epochs and batches done in all.
        batch: batches done of the epoch in progress.
        loss_sum, correct, seen: over the images of the epoch in progress.
        best_accuracy, best_epoch: of the best validation so far.
        accuracies: of every validation so far, by epoch.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    best_accuracy: float = 0.0
    best_epoch: int = 0
    accuracies: dict[int, float] = field(default_factory=dict)

    @property
    def epochs_since_best(self) -> int:
        """What early stopping compares with `patience`."""
        return self.epoch - self.best_epoch

    @property
    def means(self) -> dict[str, float]:
        """Mean loss and accuracy over the images of the epoch in progress."""
        return {"loss": self.loss_sum / self.seen, "accuracy": self.correct / self.seen}

    def count(self, loss: float, correct: int, images: int) -> None:
        """Add a batch; every image weighs the same, also those of a smaller last batch."""
        self.loss_sum += loss * images
        self.correct += correct
        self.seen += images
        self.batch += 1
        self.step += 1

    def end_epoch(self, val_accuracy: float) -> bool:
        """Whether this epoch is the best so far."""
        self.epoch += 1
        self.batch, self.loss_sum, self.correct, self.seen = 0, 0.0, 0, 0
        self.accuracies[self.epoch] = val_accuracy
        if self.best_epoch and val_accuracy <= self.best_accuracy:
            return False
        self.best_accuracy, self.best_epoch = val_accuracy, self.epoch
        return True

    def best_epochs(self, count: int) -> list[int]:
        """The `count` epochs with the highest accuracy; of equal ones, the earlier."""
        return sorted(self.accuracies, key=lambda epoch: (-self.accuracies[epoch], epoch))[:count]

    def why_finished(self, epochs: int, patience: int) -> str | None:
        """One line when there is nothing left to train, else None."""
        if self.epoch >= epochs:
            return f"Training complete after {self.epoch} epoch{'s' if self.epoch > 1 else ''}"
        if self.epochs_since_best >= patience:
            return f"Early stopping triggered after {self.epoch} epochs ({self.epochs_since_best} without a better one)"
        return None
