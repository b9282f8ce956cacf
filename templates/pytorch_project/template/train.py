"""Train the model of config.yaml.

    python train.py                                         all settings from config.yaml
    python train.py --set epochs=2 --set dataset=digits     some of them changed for this run
    python train.py --fresh                                 start anew; earlier checkpoints go to checkpoints/archive/
    torchrun --nproc-per-node=2 train.py                    in two processes, see engine/parallel.py

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
from contextlib import ExitStack
from typing import NoReturn

import torch
from tqdm import tqdm

from data.dataloader import get_dataloaders
from engine import checkpoint as ckpt
from engine.accumulate import Windows
from engine.build import model_of
from engine.config import Config, add_config_arguments, load_config
from engine.device import Compute, choose_compute, compile_model
from engine.ema import Ema
from engine.errors import EXIT_DONE, EXIT_INTERRUPTED, TrainingFailedError, run_script
from engine.keep import Keep, checkpoint_to_continue, cleared_folder
from engine.optim import build_optimizer, build_scheduler
from engine.parallel import ALONE, World, distribute, join_world
from engine.predict import loss_and_accuracy, predict
from engine.progress import Progress
from engine.rng import seed_everything, seed_rank
from engine.run import NoRun, Run, new_run_id, write_config
from engine.state import State
from engine.step import Result, Step
from engine.stop import GracefulStop, StopRequestedError


class Trainer(State):
    """Data, model, optimizer and schedule of a configuration, and the loop over them."""

    def __init__(self, config: Config, compute: Compute, world: World = ALONE) -> None:
        seed_everything(config.seed)
        self.config, self.world = config, world
        ranks = {"rank": world.rank, "world_size": world.size}
        self.train_loader, self.val_loader = get_dataloaders(config, compute.device, **ranks)
        self.is_sharded = config.shard and world.is_shared
        image_counts = len(self.train_loader.dataset), len(self.val_loader.dataset)
        world.check_batches(config.batch_size, *image_counts, whole=self.is_sharded)
        self.model = model_of(config, compute.device)
        self.ema = Ema(self.model, config.ema_decay) if config.ema_decay else None
        if config.compile:
            compile_model(self.model)
        shared_model = distribute(self.model, world, sync_batchnorm=config.sync_batchnorm, shard=config.shard)
        self.optimizer = build_optimizer(self.model, config, fused=not self.is_sharded)
        self.windows = Windows(self.train_loader, config.batch_size, config.accumulation_steps)
        self.scheduler = build_scheduler(self.optimizer, config, len(self.windows))
        self.step_every_update = config.schedule_by == "step"
        self.epochs, self.patience, self.save_every = config.epochs, config.patience, config.checkpoint_every
        self.step = Step(shared_model, self.optimizer, config.grad_clip or math.inf, compute, world)
        self.log_every = config.log_every
        self.keep = Keep(best=config.keep_best, every=config.keep_every)
        self.progress = Progress()
        self.run_id = world.from_first(lambda: new_run_id(config))
        self.split = {split.name: split.fingerprint for split in (self.train_loader.dataset, self.val_loader.dataset)}
        seed_rank(config.seed, world)

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
                val_loss, val_accuracy = self.validate(stop)
            except StopRequestedError:
                self.count_results(run)
                self.save(self.checkpoint())
                raise
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
            disable=None if self.world.is_first else True,  # None: no bar where stderr is not a terminal
            leave=False,
        )
        for window in stop.watch(self.windows.of(bar, first_batch=progress.batch)):
            rate, batch = self.optimizer.param_groups[0]["lr"], progress.step
            self.step(window)
            norm = math.nan
            if not self.step.has_room(batch, self.log_every):
                norm = self.count_results(run)
                stop.agree()
            if self.ema:
                self.ema.update(self.model)
            if self.step_every_update:
                self.scheduler.step()
            if progress.step // self.log_every > batch // self.log_every:
                bar.set_postfix({name: f"{mean:.4f}" for name, mean in progress.means.items()})
                run.log_batches(progress, rate, norm)
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
        shares = self.world.gather([tensor.cpu() for tensor in next(iter(self.train_loader))])
        images, labels = (torch.cat(parts) for parts in zip(*shares, strict=True))
        run.fail(self.checkpoint(), images, labels, result.batches[number][0], result.grad_norm)

    def validate(self, stop: GracefulStop) -> tuple[float, float]:
        """Mean loss and accuracy over the validation images, each of which one process sees.

        Raises:
            StopRequestedError: somebody asked to stop.
        """
        self.world.share_buffers(self.scored_model)
        logits, labels = predict(self.scored_model, stop.watch(self.val_loader))
        loss, accuracy = self.world.mean(loss_and_accuracy(logits, labels), weight=len(labels))
        return loss, accuracy

    def end_epoch(self, run: Run, val_loss: float, val_accuracy: float, seconds: float) -> None:
        """Write down what the epoch gave, take the schedule one step on, save."""
        progress, rate = self.progress, self.optimizer.param_groups[0]["lr"]
        train = progress.means
        if not self.step_every_update:
            self.scheduler.step()
        is_best = progress.end_epoch(val_accuracy)
        metrics = {
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
        run.log_epoch(progress, metrics, rate, seconds, is_best=is_best)
        checkpoint = self.checkpoint()
        # last.pt comes last: if this is killed before it, its epochs are repeated and give the same.
        if self.world.is_first:
            self.keep.save(checkpoint)
        if progress.epoch % self.save_every == 0 or progress.why_finished(self.epochs, self.patience):
            self.save(checkpoint)
        run.update_status(epoch=progress.epoch, step=progress.step, metrics=metrics)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--fresh", action="store_true", help="start anew instead of continuing")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    with ExitStack() as held, join_world(config.device) as world:
        world.from_first(lambda: held.enter_context(cleared_folder()))
        return start(config, arguments.fresh, world)


def start(config: Config, fresh: bool, world: World) -> int:
    """Continue from the last checkpoint, or start a new run; the exit code."""
    saved = world.from_first(lambda: None if fresh else checkpoint_to_continue(config))
    if saved:
        reason = Progress(**saved["progress"]).why_finished(config.epochs, config.patience)
        if reason:
            print(f"{reason} already; raise epochs or patience to go on, or start anew with --fresh")
            return EXIT_DONE

    compute = choose_compute(config)
    print(f"Using device: {compute}" + (f", {world.size} processes" if world.is_shared else ""))
    trainer = Trainer(config, compute, world)
    config.check_all_read()
    if saved:
        trainer.restore(saved)
        progress = trainer.progress
        print(f"Continuing {trainer.run_id} at epoch {progress.epoch + 1}, batch {progress.batch + 1}")
    elif folder := world.from_first(ckpt.archive_checkpoints):
        print(f"Moved the earlier checkpoints to {folder}")
    return train(trainer)


def train(trainer: Trainer) -> int:
    """Train under the eyes of a Run; the exit code."""
    progress = trainer.progress
    parameter_count = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"{parameter_count:,} parameters, {len(trainer.train_loader.dataset):,} training and ", end="")
    print(f"{len(trainer.val_loader.dataset):,} validation images; metrics in runs/{trainer.run_id}", flush=True)
    with open_run(trainer) as run, GracefulStop(trainer.world) as stop:
        try:
            trainer.fit(run, stop)
        except StopRequestedError:
            run.update_status(state="interrupted", message=f"saved {ckpt.LAST}; the same command continues")
            if trainer.world.is_first:
                print(f"Interrupted and saved: {ckpt.LAST}. The same command continues.", file=sys.stderr)
            return EXIT_INTERRUPTED
        reason = progress.why_finished(trainer.epochs, trainer.patience)
        run.update_status(state="done" if progress.epoch >= trainer.epochs else "stopped_early", message=reason)
    print(f"{reason}! Best val acc: {progress.best_accuracy:.2%} (epoch {progress.best_epoch}, {ckpt.BEST})")
    return EXIT_DONE


def open_run(trainer: Trainer) -> Run:
    """The folder of the run, to which the first process alone writes."""
    if not trainer.world.is_first:
        return NoRun(trainer.run_id)
    config, device = trainer.config, trainer.step.compute.device
    write_config(config, ckpt.CONFIG)
    total_steps = config.epochs * len(trainer.train_loader)
    return Run(trainer.run_id, config, trainer.progress, total_steps, device)


if __name__ == "__main__":
    sys.exit(run_script(main))
