"""What training has to remember, and how it gets into a checkpoint and out again."""

from dataclasses import asdict
from typing import Any

from torch import nn, optim

from engine import checkpoint as ckpt
from engine.config import Config
from engine.ema import Ema
from engine.optim import restore_schedule
from engine.parallel import World
from engine.progress import Progress
from engine.rng import rng_states, set_rng_states
from engine.sharding import parts_of, whole
from engine.step import Step


class State:
    """Everything that changes while a model is trained.

    Attributes:
        model: that is trained, not wrapped for several processes.
        ema: its averaged weights, if they are wanted.
        is_sharded: whether each process has a part of the weights only.
        split: fingerprint of each split, by name.
    """

    config: Config
    world: World
    model: nn.Module
    ema: Ema | None
    is_sharded: bool
    optimizer: optim.Optimizer
    scheduler: optim.lr_scheduler.LambdaLR
    step: Step
    progress: Progress
    run_id: str
    split: dict[str, str]

    @property
    def scored_model(self) -> nn.Module:
        """What is validated, and what evaluation takes from a checkpoint: the averaged model, if there is one."""
        return self.ema.model if self.ema else self.model

    def checkpoint(self) -> dict[str, Any]:
        """Everything that is needed to go on as if nothing had happened; all processes have to ask for it."""
        progress = self.progress
        weights, moments = ckpt.plain_weights(self.scored_model), self.optimizer.state_dict()
        if self.is_sharded:
            weights, moments = whole(weights), whole(moments)
        averaged = {"training_model": ckpt.plain_weights(self.model), "ema": self.ema.updates} if self.ema else {}
        return {
            "model": weights,
            **averaged,
            "optimizer": moments,
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "epoch": progress.epoch,
            "step": progress.step,
            "best": {"accuracy": progress.best_accuracy, "epoch": progress.best_epoch},
            "patience": progress.epochs_since_best,
            "rng": rng_states(self.world),
            "config": self.config.as_dict(),
            "progress": asdict(progress),
            "run_id": self.run_id,
            "split": self.split,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from what `checkpoint` returned.

        Raises:
            UserError: it is of other images, or of another model.
        """
        ckpt.check_same_images(saved, self.split)
        if self.is_sharded:
            saved = parts_of(saved, self.model, self.optimizer)
        ckpt.load_weights(self.scored_model, saved)
        if self.ema:
            ckpt.load_weights(self.model, saved | {"model": saved["training_model"]})
            self.ema.updates = saved["ema"]
        self.optimizer.load_state_dict(saved["optimizer"])
        restore_schedule(self.scheduler, saved["scheduler"])
        self.step.scaler.load_state_dict(saved.get("scaler", {}))
        self.progress = Progress(**saved["progress"])
        self.run_id = saved["run_id"]
        set_rng_states(saved["rng"], self.world)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write last.pt, in the first process."""
        if self.world.is_first:
            ckpt.save_checkpoint(checkpoint, ckpt.LAST)
