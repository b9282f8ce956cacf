"""Checkpoints: written whole or not at all, read without running code from the file."""

import contextlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from engine.config import Config
from engine.errors import UserError, naming

FOLDER = Path("checkpoints")
LAST, BEST, CONFIG = FOLDER / "last.pt", FOLDER / "best.pt", FOLDER / "config.yaml"

REQUIRED_KEYS = {
    "model",
    "optimizer",
    "scheduler",
    "epoch",
    "step",
    "best",
    "rng",
    "config",
    "progress",
    "run_id",
    "split",
}
COMPILED = "_orig_mod."  # what torch.compile puts before names
# Training may continue with another value of these; another value of any other key would make it a different run.
FREE_KEYS = (
    "epochs",
    "patience",
    "keep_best",
    "keep_every",
    "log_every",
    "num_workers",
    "shard",
    "loader",
    "device",
    "compile",
    "data_dir",
)


class DamagedError(UserError):
    """A checkpoint that cannot be read to its end."""


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write atomically: whatever happens, `path` holds either the old checkpoint or the new one.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    try:
        with atomic_file(path) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:
        # torch.save closes its archive after a failed write, and that fails with a RuntimeError on top of the reason.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror
        kept = "; the checkpoint saved before is kept" if path.exists() else ""
        raise UserError(f"{path} could not be written ({reason}){kept}; free some space and start again") from None


@contextlib.contextmanager
def atomic_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an error.

    `sync` waits until it is on the disk, so that even a power cut leaves one of the two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())  # mkstemp makes it private
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project.

    Raises:
        DamagedError: it cannot be read to its end.
        UserError: it is missing, or something else.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; train first (python train.py) or name another with --checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is wrong with a foreign file; the error below says it
            checkpoint = torch.load(path, map_location=device, weights_only=True)
        _check_sums(path)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise DamagedError(
            f"{path} is damaged or not a checkpoint ({reason}); remove it, or start anew with "
            "python train.py --fresh, which moves it to checkpoints/archive"
        ) from None
    missing = REQUIRED_KEYS - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        raise UserError(
            f"{path} is not a checkpoint of this project (it lacks {', '.join(sorted(missing))}); remove it, or start "
            "anew with python train.py --fresh, which moves it to checkpoints/archive"
        )
    return checkpoint


def _check_sums(path: Path) -> None:
    """torch.load takes a file with changed bytes as it is; the sums that torch.save wrote tell."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


def plain_weights(model: nn.Module) -> dict[str, Any]:
    """The weights of `model` under the names that they have without torch.compile and DistributedDataParallel."""
    state = unwrapped(model).state_dict()
    if not any(COMPILED in name for name in state):
        return state
    return {name.replace(COMPILED, ""): tensor for name, tensor in state.items()}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, whatever torch.compile and data parallel wrappers are around it."""
    while True:
        parts = dict(model.named_children())
        if "_orig_mod" in parts:
            model = parts["_orig_mod"]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = parts["module"]
        else:
            return model


def load_weights(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Put the weights of a checkpoint into `model`; either may be compiled, or wrapped for several processes.

    Raises:
        UserError: the architecture was changed since the checkpoint was written.
    """
    model = unwrapped(model)
    try:
        model.load_state_dict(_named_as_in(model, checkpoint["model"]))
    except RuntimeError as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"the checkpoint of run {checkpoint['run_id']} does not fit the present code of the model ({detail}); "
            "undo the change, or start anew with python train.py --fresh"
        ) from None


def _named_as_in(model: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
    """The weights under the names of `model`, of which parts may be compiled."""
    own = model.state_dict().keys()
    if weights.keys() == own:
        return weights
    names = {name.replace(COMPILED, ""): name for name in own}
    found = {}
    for name, tensor in weights.items():
        plain = name.replace(COMPILED, "")
        if plain not in names:  # a model may have a part that is called `module`
            plain = plain.removeprefix("module.")
        found[names.get(plain, name)] = tensor
    return found


def check_same_config(checkpoint: dict[str, Any], config: Config, path: Path = LAST) -> None:
    """Training may continue only as the run that it was; `path` is where the checkpoint comes from.

    Raises:
        UserError: a setting differs that would make it another run.
    """
    before, now = checkpoint["config"], config.as_dict()
    # A setting that there was not yet when the checkpoint was written was what it is by default.
    before = {key: field.default for key, field in Config.model_fields.items()} | before
    changed = [key for key in now if key not in FREE_KEYS and now[key] != before[key]]
    if changed:
        differences = ", ".join(f"{key} was {before[key]!r} and is {now[key]!r}" for key in changed)
        raise UserError(
            f"{path} is of another configuration ({differences}); undo that to continue, or start anew with --fresh"
        )


def check_same_images(checkpoint: dict[str, Any], split: dict[str, str]) -> None:
    """The images of each split must be those that the checkpoint was trained with; `split` holds fingerprints.

    Raises:
        UserError: they are not.
    """
    if checkpoint["split"] != split:
        raise UserError(
            "the checkpoint was trained with another division into training and validation images; "
            "start anew with python train.py --fresh"
        )


def saved_files() -> list[Path]:
    """The checkpoints that there are: last.pt, those that were kept, and best.pt."""
    kept = sorted([*FOLDER.glob("best-[0-9]*.pt"), *FOLDER.glob("epoch-[0-9]*.pt")])
    return [path for path in (LAST, *kept, BEST) if path.exists()]


def archive_checkpoints() -> Path | None:
    """Move the files of an earlier run to checkpoints/archive/<run id>/; where they are now, if there were any."""
    files = saved_files()  # in an order in which a kill amidst leaves something to continue from, and best.pt with it
    if not files:
        return None
    folder = FOLDER / "archive" / _run_id_of(files)
    while folder.exists():
        folder = folder.with_name(folder.name + "-again")
    folder.mkdir(parents=True)
    for path in (*files, CONFIG):
        if path.exists():
            path.replace(folder / path.name)
    return folder


def _run_id_of(files: list[Path]) -> str:
    for path in files:
        with contextlib.suppress(UserError):
            return load_checkpoint(path)["run_id"]
    return f"unreadable-{datetime.now():%Y%m%d-%H%M%S}"
