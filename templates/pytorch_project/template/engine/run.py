"""The folder of a run: metrics.jsonl, status.json, sessions.jsonl, TensorBoard curves and the configuration."""

import contextlib
import json
import math
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from torch import Tensor

from engine.checkpoint import atomic_file, save_checkpoint, saved_files
from engine.config import Config
from engine.environment import record_session
from engine.errors import TrainingFailedError, UserError, naming
from engine.progress import Progress

RUNS = Path("runs")


def new_run_id(config: Config) -> str:
    """A name like cnn-cifar10-20250131-142501 that no run has, or that of the one which was killed before it saved."""
    if killed := _killed_before_saving(config):
        return killed
    run_id = stem = f"{config.model}-{config.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 2
    while (RUNS / run_id).exists():
        run_id, number = f"{stem}-{number}", number + 1
    return run_id


def _killed_before_saving(config: Config) -> str | None:
    """The latest run, if it had these settings and was killed in its first epoch: then the same is to come again."""
    folders = RUNS.glob(f"{config.model}-{config.dataset}-*")
    folder = max(folders, key=lambda path: path.stat().st_mtime, default=None)
    if folder is None or saved_files():
        return None
    settings, status = _content(folder / "config.yaml"), _content(folder / "status.json")
    # Nobody else trains here now, so what is called running was killed. It may not have got as far as these two files.
    was_killed = status.get("state", "running") == "running" and status.get("epoch", 0) <= 1
    return folder.name if was_killed and settings.items() <= config.as_dict().items() else None


def _content(path: Path) -> dict[str, Any]:
    """What is in a YAML or JSON file; nothing, when it is not there or was left empty by a power cut."""
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


class Run:
    """Writes down what happens in a run.

    As a context, it ends the run's live state whichever way the block ends.

    Args:
        run_id: name of the folder in runs/.
        config: stored beside the metrics.
        device: where training runs, for the record.
        progress: where training starts. What an earlier session wrote beyond that is cut, because it comes again.
        total_steps: batches of the whole run, for the time that is left.
    """

    def __init__(
        self, run_id: str, config: Config, progress: Progress, total_steps: int, device: torch.device | str = "cpu"
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a slow import that nothing but training needs

        self.run_id = run_id
        self.folder = RUNS / run_id
        self.folder.mkdir(parents=True, exist_ok=True)
        write_config(config, self.folder / "config.yaml")
        record_session(self.folder, progress.step, device)
        self._status: dict[str, Any] = {
            "state": "running",
            "run_id": run_id,
            "pid": os.getpid(),
            "epoch": progress.epoch,
            "epochs": config.epochs,
            "step": progress.step,
            "steps": total_steps,
            "metrics": {},
            "eta_seconds": None,
            "message": "",
        }
        self._started, self._first_step, self._total_steps = time.time(), progress.step, total_steps
        self._cut_metrics(progress)
        self._metrics = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(self.folder), purge_step=progress.step + 1)
        self.update_status()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            # A full disk may be the reason; then these fail as well, and must not take the place of the first error.
            with contextlib.suppress(OSError):
                self.update_status(**_ending(kind, error))
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self._metrics.close()
            self._tensorboard.close()

    def log_batches(self, progress: Progress, rate: float, grad_norm: float) -> None:
        """The means of the epoch so far, the learning rate of the last update and the norm of its gradient."""
        epoch = progress.epoch + 1
        self.log("train", step=progress.step, epoch=epoch, **progress.means, lr=rate, grad_norm=grad_norm)
        self.plot(progress.step, GradientNorm=grad_norm)
        self.update_status(epoch=epoch, step=progress.step, metrics=progress.means)

    def log_epoch(
        self, progress: Progress, metrics: dict[str, float], rate: float, seconds: float, *, is_best: bool
    ) -> None:
        """The losses and accuracies of an epoch that has ended, with train_ and val_ before their names."""
        step, epoch = progress.step, progress.epoch
        self.log("epoch", step=step, epoch=epoch, **metrics, lr=rate, seconds=seconds, best=is_best)
        self.plot(step, LearningRate=rate, Loss__train=metrics["train_loss"], Loss__val=metrics["val_loss"])
        self.plot(step, Accuracy__train=metrics["train_accuracy"], Accuracy__val=metrics["val_accuracy"])
        print(
            f"Epoch {epoch}/{self._status['epochs']}  train loss {metrics['train_loss']:.4f} "
            f"acc {metrics['train_accuracy']:.2%}  val loss {metrics['val_loss']:.4f} "
            f"acc {metrics['val_accuracy']:.2%}  lr {rate:.6f}  ({seconds:.1f} s)"
            + ("  saved best" if is_best else ""),
            flush=True,
        )

    def log(self, kind: str, *, step: int, **values: Any) -> None:
        """Add a line to metrics.jsonl: `kind` is "train" (some batches) or "epoch". What is not finite becomes null."""
        values = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}
        line = {"kind": kind, "step": step, **values, "time": round(time.time(), 3)}
        with naming(self.folder / "metrics.jsonl"):
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()

    def plot(self, step: int, **values: float) -> None:
        """Add a point to TensorBoard curves; two underscores in a name stand for a slash. `step` counts batches.

        All curves count batches, so that `purge_step` removes the right points when training continues.
        """
        for name, value in values.items():
            self._tensorboard.add_scalar(name.replace("__", "/"), value, step)

    def update_status(self, **changes: Any) -> None:
        """Change the live state in status.json, which is never half-written; mere progress at most once a second."""
        self._status |= changes
        now = time.time()
        if self._status["state"] == "running" and now - self._status.get("updated", 0) < 1:
            return
        self._status["updated"] = round(now, 3)
        self._status["eta_seconds"] = self._eta(now)
        write_json(self._status, self.folder / "status.json", sync=False)

    def fail(
        self, checkpoint: dict[str, Any], images: Tensor, labels: Tensor, loss: float, grad_norm: float = math.nan
    ) -> NoReturn:
        """Save the batch and the state that it met, before they could spoil the weights, and give up.

        Raises:
            TrainingFailedError: always.
        """
        path = self.folder / "nonfinite.pt"
        save_checkpoint(checkpoint | {"images": images, "labels": labels, "loss": loss, "grad_norm": grad_norm}, path)
        raise _not_finite(checkpoint, path, loss, grad_norm)

    def _eta(self, now: float) -> float | None:
        """Seconds left at the pace of this session; None before its first batch and when nothing is running."""
        step = self._status["step"]
        if self._status["state"] != "running" or step == self._first_step:
            return None
        return round((now - self._started) / (step - self._first_step) * (self._total_steps - step), 1)

    def _cut_metrics(self, progress: Progress) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        with atomic_file(path) as file:
            for line in lines:
                if _was_before(line, progress):
                    file.write((line + "\n").encode())


class NoRun(Run):
    """Stands in for the run in the processes that write nothing down, because the first one does."""

    def __init__(self, run_id: str) -> None:
        self.folder = RUNS / run_id

    def __exit__(self, *exception: object) -> None:
        pass

    def log_batches(self, *values: Any) -> None:
        """Do nothing."""

    def log_epoch(self, *values: Any, **more: Any) -> None:
        """Do nothing."""

    def update_status(self, **changes: Any) -> None:
        """Do nothing."""

    def fail(
        self, checkpoint: dict[str, Any], images: Tensor, labels: Tensor, loss: float, grad_norm: float = math.nan
    ) -> NoReturn:
        """Give up, as the first process does; it saves what led there."""
        raise _not_finite(checkpoint, self.folder / "nonfinite.pt", loss, grad_norm)


def _not_finite(checkpoint: dict[str, Any], path: Path, loss: float, grad_norm: float) -> TrainingFailedError:
    at = checkpoint["progress"]
    return TrainingFailedError(
        f"loss {loss} with gradient norm {grad_norm} in epoch {at['epoch'] + 1}, batch {at['batch'] + 1}; "
        f"the batch and the state before it are in {path}; a lower learning_rate may help"
    )


def _ending(kind: type[BaseException], error: BaseException | None) -> dict[str, str]:
    """State and message of a run that `error` ended."""
    if issubclass(kind, KeyboardInterrupt):
        return {"state": "interrupted", "message": "ended at once, without saving"}
    message = str(error) if issubclass(kind, UserError | TrainingFailedError) else f"{kind.__name__}: {error}"
    return {"state": "failed", "message": message}


def _was_before(line: str, progress: Progress) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False  # the last line of a session that was killed while writing
    if entry["kind"] == "epoch":
        return entry["epoch"] <= progress.epoch
    return entry["step"] <= progress.step


def write_json(content: dict[str, Any], path: Path, *, sync: bool = True) -> None:
    """Write atomically, indented."""
    with atomic_file(path, sync=sync) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def write_config(config: Config, path: Path) -> None:
    """Write all settings that were used, defaults included, as YAML that `--config` reads."""
    with atomic_file(path) as file:
        file.write(yaml.safe_dump(config.used(), sort_keys=False).encode())
