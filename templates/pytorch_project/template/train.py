"""Train the model of config.yaml.

    python train.py                                         all settings from config.yaml
    python train.py --set epochs=2 --set dataset=digits     some of them changed for this run
    python train.py --fresh                                 start anew; earlier checkpoints go to checkpoints/archive/

Continues from checkpoints/last.pt when there is one. Ctrl-C finishes the batch and saves; the same command then goes on
exactly where it stopped. Best and last checkpoint are in checkpoints/, metrics.jsonl, status.json and the TensorBoard
curves in runs/<run id>/. Exit code 0: done, 1: failed, 2: wrong use, 130: interrupted and saved.
"""

import engine.startup  # noqa: F401  (first: it concerns the imports below)

# isort: split
import argparse
import math
import sys
import time
from dataclasses import asdict
from typing import Any, NoReturn

from tqdm import tqdm

from data.dataloader import get_dataloaders
from engine import checkpoint as ckpt
from engine.accumulate import Windows
from engine.build import model_of
from engine.config import Config, add_config_arguments, load_config
from engine.device import Compute, choose_compute, compile_model
from engine.errors import EXIT_DONE, EXIT_INTERRUPTED, TrainingFailedError, run_script
from engine.keep import Keep, checkpoint_to_continue, remove_temporary_files
from engine.lock import exclusive
from engine.optim import build_optimizer, build_scheduler, restore_schedule
from engine.predict import loss_and_accuracy, predict
from engine.progress import Progress
from engine.rng import rng_state, seed_everything, set_rng_state
from engine.run import Run, new_run_id, write_config
from engine.step import Result, Step
from engine.stop import GracefulStop, StopRequestedError


class Trainer:
    """Data, model, optimizer and schedule of a configuration, and the loop over them."""

    def __init__(self, config: Config, compute: Compute) -> None:
        seed_everything(config.seed)
        self.config = config
        self.train_loader, self.val_loader = get_dataloaders(config, compute.device)
        self.model = model_of(config, compute.device)
        if config.compile:
            compile_model(self.model)
        self.optimizer = build_optimizer(self.model, config, fused=not compute.reads_at_once)
        self.windows = Windows(self.train_loader, config.batch_size, config.accumulation_steps)
        self.scheduler = build_scheduler(self.optimizer, config, len(self.windows))
        self.step_every_update = config.schedule_by == "step"
        self.epochs, self.patience, self.save_every = config.epochs, config.patience, config.checkpoint_every
        self.step = Step(self.model, self.optimizer, config.grad_clip or math.inf, compute)
        self.log_every = config.log_every
        self.keep = Keep(best=config.keep_best, every=config.keep_every)
        self.progress = Progress()
        self.run_id = new_run_id(config)
        self.split = {split.name: split.fingerprint for split in (self.train_loader.dataset, self.val_loader.dataset)}

    def checkpoint(self) -> dict[str, Any]:
        """Everything that is needed to go on as if nothing had happened."""
        progress = self.progress
        return {
            "model": ckpt.plain_weights(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "epoch": progress.epoch,
            "step": progress.step,
            "best": {"accuracy": progress.best_accuracy, "epoch": progress.best_epoch},
            "patience": progress.epochs_since_best,
            "rng": rng_state(),
            "config": self.config.as_dict(),
            "progress": asdict(progress),
            "run_id": self.run_id,
            "split": self.split,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from what `checkpoint` returned."""
        ckpt.check_same_images(saved, self.split)
        ckpt.load_weights(self.model, saved)
        self.optimizer.load_state_dict(saved["optimizer"])
        restore_schedule(self.scheduler, saved["scheduler"])
        self.step.scaler.load_state_dict(saved.get("scaler", {}))
        self.progress = Progress(**saved["progress"])
        self.run_id = saved["run_id"]
        set_rng_state(saved["rng"])

    def fit(self, run: Run, stop: GracefulStop) -> None:
        """Train to the last epoch, or until validation stops getting better.

        Raises:
            StopRequestedError: somebody asked to stop; `checkpoints/last.pt` says where.
            TrainingFailedError: the loss or a gradient is not finite.
        """
        while not self.progress.why_finished(self.epochs, self.patience):
            started = time.time()
            try:
                self.train_epoch(run, stop)
                logits, labels = predict(self.model, stop.watch(self.val_loader))
            except StopRequestedError:
                self.count_results(run)
                ckpt.save_checkpoint(self.checkpoint(), ckpt.LAST)
                raise
            val_loss, val_accuracy = loss_and_accuracy(logits, labels)
            if not math.isfinite(val_loss):
                raise TrainingFailedError(f"validation loss {val_loss} after epoch {self.progress.epoch + 1}")
            self.end_epoch(run, val_loss, val_accuracy, time.time() - started)

    def train_epoch(self, run: Run, stop: GracefulStop) -> None:
        """The updates of the epoch in progress that are still to do."""
        progress = self.progress
        self.model.train()
        self.train_loader.set_epoch(progress.epoch, first_batch=progress.batch)
        bar = tqdm(
            self.train_loader,
            desc=f"Epoch {progress.epoch + 1}/{self.epochs}",
            initial=progress.batch,
            total=len(self.train_loader),
            disable=None,  # no bar where stderr is not a terminal
            leave=False,
        )
        for window in stop.watch(self.windows.of(bar, first_batch=progress.batch)):
            rate, batch = self.optimizer.param_groups[0]["lr"], progress.step
            self.step(window)
            norm = math.nan if self.step.has_room(batch, self.log_every) else self.count_results(run)
            if self.step_every_update:
                self.scheduler.step()
            if progress.step // self.log_every > batch // self.log_every:
                means = {"loss": progress.loss_sum / progress.seen, "accuracy": progress.correct / progress.seen}
                bar.set_postfix(loss=f"{means['loss']:.4f}", acc=f"{means['accuracy']:.1%}")
                run.log("train", step=progress.step, epoch=progress.epoch + 1, **means, lr=rate, grad_norm=norm)
                run.plot(progress.step, GradientNorm=norm)
                run.update_status(epoch=progress.epoch + 1, step=progress.step, metrics=means)
        self.count_results(run)

    def count_results(self, run: Run) -> float:
        """Read what came of the updates since the last call, and count it; the norm of the last gradient.

        Raises:
            TrainingFailedError: a loss or a gradient was not finite.
        """
        norm = math.nan
        for result in self.step.read():
            norm = result.grad_norm
            if result.failed_at is not None:
                self.fail(run, result, result.failed_at)
            for batch in result.batches:
                self.progress.count(*batch)
        return norm

    def fail(self, run: Run, result: Result, number: int) -> NoReturn:
        """Fetch the batch again at which an update stopped being finite, and save it beside the state before it."""
        self.train_loader.set_epoch(self.progress.epoch, first_batch=self.progress.batch + number)
        images, labels = next(iter(self.train_loader))
        run.fail(self.checkpoint(), images, labels, result.batches[number][0], result.grad_norm)

    def end_epoch(self, run: Run, val_loss: float, val_accuracy: float, seconds: float) -> None:
        """Write down what the epoch gave, take the schedule one step on, save."""
        progress, rate = self.progress, self.optimizer.param_groups[0]["lr"]
        train_loss, train_accuracy = progress.loss_sum / progress.seen, progress.correct / progress.seen
        if not self.step_every_update:
            self.scheduler.step()
        is_best = progress.end_epoch(val_accuracy)

        metrics = {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
        run.log("epoch", step=progress.step, epoch=progress.epoch, **metrics, lr=rate, seconds=seconds, best=is_best)
        run.plot(progress.step, LearningRate=rate, Loss__train=train_loss, Loss__val=val_loss)
        run.plot(progress.step, Accuracy__train=train_accuracy, Accuracy__val=val_accuracy)
        # last.pt comes last: if this is killed before it, its epochs are repeated and give the same.
        self.keep.save(self.checkpoint())
        if progress.epoch % self.save_every == 0 or progress.why_finished(self.epochs, self.patience):
            ckpt.save_checkpoint(self.checkpoint(), ckpt.LAST)
        run.update_status(epoch=progress.epoch, step=progress.step, metrics=metrics)
        print(
            f"Epoch {progress.epoch}/{self.epochs}  train loss {train_loss:.4f} acc {train_accuracy:.2%}  "
            f"val loss {val_loss:.4f} acc {val_accuracy:.2%}  lr {rate:.6f}  ({seconds:.1f} s)"
            + ("  saved best" if is_best else ""),
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--fresh", action="store_true", help="start anew instead of continuing")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    with exclusive(ckpt.FOLDER):
        remove_temporary_files()
        return start(config, arguments.fresh)


def start(config: Config, fresh: bool) -> int:
    """Continue from the last checkpoint, or start a new run; the exit code."""
    saved = None if fresh else checkpoint_to_continue(config)
    if saved:
        reason = Progress(**saved["progress"]).why_finished(config.epochs, config.patience)
        if reason:
            print(f"{reason} already; raise epochs or patience to go on, or start anew with --fresh")
            return EXIT_DONE

    compute = choose_compute(config)
    print(f"Using device: {compute}")
    trainer = Trainer(config, compute)
    config.check_all_read()
    if saved:
        trainer.restore(saved)
        progress = trainer.progress
        print(f"Continuing {trainer.run_id} at epoch {progress.epoch + 1}, batch {progress.batch + 1}")
    elif folder := ckpt.archive_checkpoints():
        print(f"Moved the earlier checkpoints to {folder}")
    return train(trainer)


def train(trainer: Trainer) -> int:
    """Train under the eyes of a Run; the exit code."""
    progress, config = trainer.progress, trainer.config
    parameter_count = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"{parameter_count:,} parameters, {len(trainer.train_loader.dataset):,} training and ", end="")
    print(f"{len(trainer.val_loader.dataset):,} validation images; metrics in runs/{trainer.run_id}", flush=True)
    write_config(config, ckpt.CONFIG)
    total_steps = config.epochs * len(trainer.train_loader)
    with Run(trainer.run_id, config, progress=progress, total_steps=total_steps) as run, GracefulStop() as stop:
        try:
            trainer.fit(run, stop)
        except StopRequestedError:
            run.update_status(state="interrupted", message=f"saved {ckpt.LAST}; the same command continues")
            print(f"Interrupted and saved: {ckpt.LAST}. The same command continues.", file=sys.stderr)
            return EXIT_INTERRUPTED
        reason = progress.why_finished(trainer.epochs, trainer.patience)
        run.update_status(state="done" if progress.epoch >= trainer.epochs else "stopped_early", message=reason)
    print(f"{reason}! Best val acc: {progress.best_accuracy:.2%} (epoch {progress.best_epoch}, {ckpt.BEST})")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_script(main))
