"""Active probes: the live objects of a run, tried in a forked copy of its process, so that the run never notices."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .loaders import settings
from .tensors import tensors_of

SMALL_FILE = 100 * 2**20


@dataclass
class LoaderUse:
    """A loader, and the first batches that the script got from it."""

    loader: Any
    dataset: Any
    name: str
    loc: str
    batches: list[tuple[Tensor, Tensor | None]]
    settings: dict[str, Any]


@dataclass
class Capture:
    """What the probes have to work with.

    Attributes:
        model: what the script trains; None if it trains no module.
        inputs: what the model was given in the last pass that was trained on: (args, kwargs).
        targets: what the loss was given with it.
        loss: (name, function, args, options) of the last loss function that was called.
        optimizers: those that have stepped.
        train: the loader that training iterates.
        evals: the loaders that were iterated to evaluate, in the order of their first use.
        num_classes: width of the logits at the loss.
        image_like: whether the inputs are (B, C, H, W).
        deadline: `time.monotonic()` at which all must be over.
        constructor: (class, arguments) that built the model, where they are plain values.
        output: what the model returned first in that pass.
        is_classifier: whether its outputs are the logits of classes.
        trained_call: (targets, options) of the last cross entropy that had a gradient.
        remembered: rows of tensors that batches may be cut from by hand, as they were at the first step.
    """

    model: nn.Module | None
    inputs: Any
    targets: Tensor | None
    loss: Any
    optimizers: list[Any]
    train: LoaderUse | None
    evals: list[LoaderUse]
    num_classes: int | None
    image_like: bool
    deadline: float
    constructor: tuple[type, dict[str, Any]] | None = None
    output: Tensor | None = None
    is_classifier: bool = True
    remembered: Any = ()
    trained_call: Any = None


def make(recorder: Any) -> Capture:
    """Collect the live objects."""
    one = recorder.last_trained
    train, evals = None, []
    last = recorder._train_loader()
    earlier = _of_earlier_stages(recorder, last)
    for entry in recorder.loaders.values():
        loader = entry["loader"]
        if entry["id"] in earlier:
            continue
        use = LoaderUse(
            loader, loader.dataset, f"loader {entry['id']}", entry["loc"], entry["batches"], settings(loader)
        )
        if id(loader) in recorder.train_loader_ids:
            train = use if entry["id"] == last else train
        else:
            evals.append(use)
    inputs = one.model_input if one else None
    first = next(tensors_of(inputs), None) if inputs is not None else None
    output = one.output if one else None
    classification = recorder.last_call is not None and recorder.last_call[0] in ("cross_entropy", "nll_loss")
    classes = output.shape[1] if classification and output is not None and output.dim() == 2 else None
    return Capture(
        model=one.info.module if one else None,
        inputs=inputs,
        targets=one.targets if one else None,
        loss=recorder.last_call,
        optimizers=[info.optimizer for info in recorder.optimizers.values() if info.steps],
        train=train,
        evals=evals,
        num_classes=classes,
        image_like=first is not None and first.dim() == 4,
        deadline=time.monotonic() + recorder.session.settings["probe_seconds"],
        constructor=recorder.constructed.get(id(one.info.module)) if one else None,
        output=output,
        is_classifier=classes is not None,
        remembered=recorder.remembered,
        trained_call=recorder.last_trained_call,
    )


def _of_earlier_stages(recorder: Any, last: int | None) -> set[int]:
    """Loaders that were evaluated only while another one was trained on, before training on this one began."""
    trained = {
        e["id"]: e["first"]
        for e in recorder.loaders.values()
        if id(e["loader"]) in recorder.train_loader_ids and "first" in e
    }
    began, first = trained.get(last, 0), min(trained.values(), default=0)
    others = [e for e in recorder.loaders.values() if e["id"] not in trained]
    return {e["id"] for e in others if first <= e.get("last", -1) < began}


def fork_and_probe(recorder: Any) -> None:
    """Start the probes in a grandchild process; this process goes on at once."""
    if not hasattr(os, "fork"):
        recorder.emit("probe", name="all", skipped="this system cannot fork")
        return
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        recorder.emit("probe", name="all", skipped="probes are made on the CPU, and the run uses CUDA", on="cuda")
        return
    recorder.session.writer.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    try:
        if os.fork() == 0:
            _probe(recorder)
    except BaseException:
        pass
    os._exit(0)


def _probe(recorder: Any) -> None:
    from .events import Writer

    recorder.is_probing = True
    session = recorder.session
    folder = session.settings["folder"]
    marker = os.path.join(folder, f"probing-{session.writer.pid}-{recorder.captures}")
    with open(marker, "w") as file:
        file.write(str(os.getpid()))
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.nice(5)
    torch.set_num_threads(1)
    writer = Writer(folder)
    writer.path = os.path.join(folder, f"probes-{session.writer.pid}.jsonl")
    try:
        run_probes(make(recorder), writer, session)
    except BaseException:
        writer.emit("probe", name="all", skipped="internal error: " + traceback.format_exc()[-600:])
    writer.flush()
    os.unlink(marker)
    os._exit(0)


def run_probes(captured: Capture, writer: Any, session: Any) -> None:
    """Each probe by itself: one that raises is a probe that was not made."""
    from . import data_probes, loop_probes, token_probes

    probes = {
        "data": lambda: data_probes.probe_data(captured),
        "loop": lambda: loop_probes.probe_loop(captured),
        "tokens": lambda: token_probes.probe_tokens(captured),
        "model": lambda: _probe_model(captured, session),
    }
    for name, probe in probes.items():
        start = time.monotonic()
        try:
            with torch.enable_grad():
                result = probe()
            writer.emit("probe", name=name, result=result, seconds=round(time.monotonic() - start, 2))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(place.filename)}:{place.lineno}"
            writer.emit("probe", name=name, skipped=f"{type(error).__name__} at {where}: {error}"[:300])
        writer.flush()


def _probe_model(captured: Capture, session: Any) -> Any:
    """Hand the live model to the rules about models; they need the interpreter and the packages of the kit."""
    root = session.settings["kit"]
    for name in [name for name in sys.modules if name == "verify" or name.startswith("verify.")]:
        del sys.modules[name]
    sys.path.insert(0, root)
    sys.path.extend(session.settings["kit_packages"])
    from verify.trace.model_rules import check_live_model  # type: ignore[import-not-found, unused-ignore]

    return check_live_model(captured)


def look_at_first_step(recorder: Any, info: Any) -> None:
    """Pictures of the first batches, before anything can have changed them."""
    for role, entry in (("train", recorder.current.entry if recorder.current is not None else None),):
        if entry and entry["batches"]:
            from .pictures import contact_sheet

            picture = contact_sheet(entry["batches"][0][0])
            if picture:
                recorder.emit("batch_picture", role=role, png_base64=picture)


def look_at_files(recorder: Any) -> None:
    """Whether what was saved last can be read back the safe way."""
    if recorder.fast and not recorder.step:
        return
    for path in list(getattr(recorder, "saved_paths", {}))[-4:]:
        if not os.path.isfile(path) or os.path.getsize(path) > SMALL_FILE:
            continue
        recorder.is_probing = True
        problem = ""
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            problem = str(error).splitlines()[0][:200]
        finally:
            recorder.is_probing = False
        original = recorder.session.places.original(os.path.realpath(path))
        recorder.emit("saved_file", path=original, safe=not problem, problem=problem, size=os.path.getsize(path))
