"""Hooks into what is saved and loaded: checkpoints, state dicts."""

from __future__ import annotations

import functools
import io
import os
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .quiet import quiet


def install(recorder: Any) -> None:
    """Hook into torch.save, torch.load, and the state dicts of modules and schedulers."""
    _hook_save(recorder)
    _hook_load(recorder)
    _hook_state_dicts(recorder)
    _hook_scheduler_load(recorder)


def _active(recorder: Any) -> bool:
    return bool(recorder.session.is_recording and not recorder.is_probing)


def _path(file: Any) -> str | None:
    """The path behind what torch.save and torch.load were given; a file may know but its number."""
    if isinstance(file, (str, os.PathLike)):
        return os.fspath(file)
    name = getattr(file, "name", None)
    if isinstance(name, int):
        try:
            return os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            return None
    return name if isinstance(name, str) else None


SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".tar", ".pkl")
PATH_NAMES = ("filepath", "checkpoint_path", "ckpt_path", "path", "urlpath", "filename", "file")


def _callers(frame: Any) -> list[Any]:
    found: list[Any] = []
    while frame is not None and len(found) < 12:
        found.append(frame)
        frame = frame.f_back
    return found


def _path_of_buffer(frame: Any) -> str | None:
    """Where a buffer in memory will be written to, which a framework's functions around this call know."""
    for one in _callers(frame):
        for name in PATH_NAMES:
            value = one.f_locals.get(name)
            if isinstance(value, (str, os.PathLike)) and os.fspath(value).endswith(SUFFIXES):
                return os.fspath(value)
    return None


def _keeps_best(frame: Any) -> bool:
    """Whether a framework's callback saves this because a metric is the best so far."""
    owners = [one.f_locals.get("self") for one in _callers(frame)]
    monitors = [getattr(o, "monitor", None) for o in owners if type(o).__name__ == "ModelCheckpoint"]
    last = any(one.f_code.co_name == "_save_last_checkpoint" for one in _callers(frame))
    return bool(monitors and monitors[0]) and not last


def _hook_save(recorder: Any) -> None:
    original = torch.save

    @functools.wraps(original)
    def save(obj: Any, f: Any, *args: Any, **options: Any) -> Any:
        path = _path(f) or (_path_of_buffer(sys._getframe(1)) if isinstance(f, io.BytesIO) else None)
        if isinstance(path, str) and isinstance(f, (str, os.PathLike)):
            recorder.session.guard.guarded(path, True, fresh=True)  # torch opens it without Python's knowledge
        result = original(obj, f, *args, **options)
        if _active(recorder) and isinstance(path, str):
            _note_save(recorder, path, obj, best=_keeps_best(sys._getframe(1)))
        return result

    torch.save = save


@quiet
def _note_save(recorder: Any, path: str, obj: Any, best: bool) -> None:
    recorder.look_at_report()
    recorder.saved_paths = {**getattr(recorder, "saved_paths", {}), os.path.abspath(path): None}
    recorder.emit(
        "save",
        path=recorder.session.places.original(os.path.realpath(path)),
        step=recorder.step,
        epoch=recorder.train_epochs,
        fast=recorder.fast,
        content=describe(recorder, obj),
        same=_same_tensors(obj),
        best=best,
        loc=recorder.here(),
    )
    _look_for_average(recorder)


def _same_tensors(obj: Any) -> list[list[str]]:
    """Pairs of keys of a checkpoint whose weights are the same memory: saved twice, or a copy that is none."""
    if not isinstance(obj, Mapping):
        return []
    states = {str(key): _memory(value) for key, value in list(obj.items())[:40]}
    known = [(key, memory) for key, memory in states.items() if len(memory) > 1]
    return [[one, other] for n, (one, a) in enumerate(known) for other, b in known[n + 1 :] if a == b]


def _memory(state: Any) -> set[int]:
    """Where the tensors of a state dict lie; nothing for what is no state dict."""
    if not isinstance(state, Mapping):
        return set()
    inner = [v for v in state.values() if isinstance(v, Mapping) and v and all(_is_tensor(t) for t in v.values())]
    if len(inner) == 1 and not _is_tensor(next(iter(state.values()))):
        state = inner[0]  # {"decay": 0.999, "shadow": {...}}
    return {t.data_ptr() for t in state.values() if _is_tensor(t) and t.numel()}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


AVERAGES = ("ema", "average", "averaged", "avg", "swa", "shadow")


def _look_for_average(recorder: Any) -> None:
    """A dict of averaged weights, in a variable or inside of an object, that holds the model's own tensors."""
    if recorder.last_trained is None or not recorder.step or len(getattr(recorder, "aliases", ())) > 20:
        return
    module = recorder.last_trained.info.module
    live = {t.data_ptr() for t in [*module.parameters(), *module.buffers()]} - {0}
    recorder.aliases = getattr(recorder, "aliases", [])
    for name, value in _held_dicts(recorder.session.places.user_frames()[:4]):
        memory = _memory(value)
        if len(memory) > 1 and memory <= live:
            recorder.aliases.append(name)
            recorder.emit("average_aliased", name=name, tensors=len(memory), step=recorder.step, loc=recorder.here())
            return


def _held_dicts(frames: list[Any]) -> list[tuple[str, Any]]:
    """Dicts that are held under a name of an average, or by an object that is."""
    found = []
    for frame in frames:
        items = list(frame.f_locals.items())
        owner = frame.f_locals.get("self")
        if hasattr(owner, "__dict__"):
            items += [(f"self.{key}", value) for key, value in list(vars(owner).items())]
        for name, value in items:
            if not _names_average(name):
                continue
            if isinstance(value, Mapping):
                found.append((name, value))
            elif not isinstance(value, Tensor) and hasattr(value, "__dict__"):
                inner = [(f"{name}.{key}", v) for key, v in list(vars(value).items()) if isinstance(v, Mapping)]
                found += [pair for pair in inner if _names_average(pair[0].rpartition(".")[2])]
    return found


def _names_average(name: str) -> bool:
    return any(word in AVERAGES for word in name.lower().replace(".", "_").split("_"))


def _hook_load(recorder: Any) -> None:
    original = torch.load

    @functools.wraps(original)
    def load(f: Any, *args: Any, **options: Any) -> Any:
        path = _path(f)
        if recorder.session.settings["fake_cuda"]:
            options["map_location"] = "cpu"
        try:
            result = original(f, *args, **options)
        except Exception as error:
            if _active(recorder):
                _note_failed_load(recorder, path, error)
            raise
        if _active(recorder):
            _note_load(recorder, path, options, result)
        return result

    torch.load = load


@quiet
def _note_failed_load(recorder: Any, path: Any, error: Exception) -> None:
    known = recorder.session.places.original(os.path.realpath(path)) if isinstance(path, str) else None
    recorder.emit("load_failed", path=known, error=type(error).__name__, step=recorder.step, loc=recorder.here())


@quiet
def _note_load(recorder: Any, path: Any, options: dict, result: Any) -> None:
    recorder.emit(
        "load",
        path=recorder.session.places.original(os.path.realpath(path)) if isinstance(path, str) else None,
        own=isinstance(path, str) and os.path.abspath(path) in getattr(recorder, "saved_paths", {}),
        weights_only=options.get("weights_only"),
        step=recorder.step,
        content=describe(recorder, result),
        loc=recorder.here(),
    )


def describe(recorder: Any, obj: Any, depth: int = 2) -> Any:
    """The kind of thing that is saved: keys with what is behind them, never values of tensors."""
    if isinstance(obj, Mapping):
        if obj and all(isinstance(v, Tensor) for v in obj.values()):
            return _describe_weights(recorder, obj)
        keys = (
            {str(key): describe(recorder, value, depth - 1) for key, value in list(obj.items())[:40]} if depth else {}
        )
        kind = "dict"
        names = set(map(str, obj))
        if {"state", "param_groups"} <= names:
            kind = "optimizer"
            keys = {"entries": len(obj["state"])}
        elif "last_epoch" in names and "_step_count" in names:
            kind = "scheduler"
        elif {"scale", "growth_factor"} <= names or {"_growth_tracker"} <= names:
            kind = "scaler"
        return {"kind": kind, "type": type(obj).__name__, "keys": keys}
    if isinstance(obj, Tensor):
        return {"kind": "tensor", "shape": list(obj.shape)}
    if isinstance(obj, nn.Module):
        return {"kind": "module", "type": type(obj).__name__}
    if isinstance(obj, (int, float, str, bool)) or obj is None:
        return {"kind": "value", "value": obj if not isinstance(obj, str) else obj[:60]}
    return {"kind": "other", "type": f"{type(obj).__module__}.{type(obj).__name__}"}


def _describe_weights(recorder: Any, state: Mapping) -> dict[str, Any]:
    first = next(iter(state))
    prefix = next((p for p in ("module.", "_orig_mod.") if all(str(k).startswith(p) for k in state)), "")
    live = {p.data_ptr() for info in recorder.models.values() for _, p in info.named}
    shared = sum(t.data_ptr() in live for t in state.values() if t.numel())
    made = recorder.state_dicts.get(id(state))
    return {
        "kind": "weights",
        "tensors": len(state),
        "first": str(first),
        "prefix": prefix,
        "live": shared,
        "made_at": made[1] if made is not None and made[0]() is state else None,
    }


def _hook_state_dicts(recorder: Any) -> None:
    original_make, original_load = nn.Module.state_dict, nn.Module.load_state_dict
    depth = [0]

    @functools.wraps(original_make)
    def state_dict(module: nn.Module, *args: Any, **options: Any) -> Any:
        depth[0] += 1
        try:
            result = original_make(module, *args, **options)
        finally:
            depth[0] -= 1
        if depth[0] == 0 and _active(recorder):
            try:
                if len(recorder.state_dicts) > 2000:
                    recorder.state_dicts.clear()
                recorder.state_dicts[id(result)] = (weakref.ref(result), recorder.step, recorder.here())
            except TypeError:  # a plain dict cannot be referred to weakly
                pass
        return result

    @functools.wraps(original_load)
    def load_state_dict(module: nn.Module, state_dict: Any, strict: bool = True, *args: Any, **options: Any) -> Any:
        if not _active(recorder):
            return original_load(module, state_dict, strict, *args, **options)
        before = _pointers(original_make(module))
        result = original_load(module, state_dict, strict, *args, **options)
        _note_weights(recorder, module, state_dict, strict, before)
        return result

    nn.Module.state_dict = state_dict  # type: ignore[method-assign]
    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _pointers(state: Any) -> dict[str, tuple[int, Any]]:
    return {k: (v.data_ptr(), v.shape) for k, v in state.items() if isinstance(v, Tensor)}


@quiet
def _note_weights(recorder: Any, module: nn.Module, state_dict: Any, strict: bool, own: dict[str, Any]) -> None:
    given = dict(state_dict)
    aliased = sum(
        isinstance(v, Tensor) and v.numel() > 0 and k in own and own[k][0] == v.data_ptr() for k, v in given.items()
    )
    made = recorder.state_dicts.get(id(state_dict))
    known = recorder.models.get(id(module))
    recorder.emit(
        "weights_loaded",
        model=known.number if known else None,
        cls=type(module).__name__,
        strict=bool(strict),
        given=len(given),
        own=len(own),
        matched=sum(k in own and getattr(v, "shape", None) == own[k][1] for k, v in given.items()),
        missing=sorted(set(own) - set(given))[:8],
        unexpected=sorted(set(given) - set(own))[:8],
        aliased=aliased,
        made_at=made[1] if made is not None and made[0]() is state_dict else None,
        step=recorder.step,
        loc=recorder.here(),
    )
    recorder.loaded = [*getattr(recorder, "loaded", []), (module, step_print(module), recorder.step)][-3:]


def step_print(module: nn.Module) -> dict[str, float]:
    """A checksum a parameter, to see later whether what was loaded is still there."""
    with torch.no_grad():
        return {name: p.detach().double().sum().item() for name, p in module.named_parameters()}


def _hook_scheduler_load(recorder: Any) -> None:
    from torch.optim import lr_scheduler

    original = lr_scheduler.LRScheduler.load_state_dict

    @functools.wraps(original)
    def load_state_dict(scheduler: Any, state_dict: Any) -> None:
        original(scheduler, state_dict)
        if _active(recorder):
            recorder.emit(
                "scheduler_loaded",
                last_epoch=getattr(scheduler, "last_epoch", None),
                step=recorder.step,
                loc=recorder.here(),
            )

    lr_scheduler.LRScheduler.load_state_dict = load_state_dict  # type: ignore[method-assign]


def look_at_loaded(recorder: Any) -> None:
    """Before the first step of an optimizer: are the weights that were loaded before it still there?"""
    for module, then, step in getattr(recorder, "loaded", []):
        now = step_print(module)
        changed = [name for name, value in now.items() if name in then and then[name] != value]
        if step == recorder.step:
            recorder.emit(
                "loaded_then", cls=type(module).__name__, tensors=len(now), changed=len(changed), first=changed[:3]
            )
