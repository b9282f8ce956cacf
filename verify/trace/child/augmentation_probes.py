"""What is random in an item: whether fetches differ, which transforms run, and what switches of a dataset do."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import TensorDataset

from .items import attributes_of, digest_of, input_of, item_digest, next_epoch, random_state, seed_everything
from .measuring import Clock, Json, Unavailable, attempt, attempt_each
from .views import View

REPEATED_ITEMS = 50  # fetched again under other seeds
SEEDS = (1, 2, 3)
RANDOM_NAME = re.compile(
    r"^(Random|.*Jitter|Auto?Augment|AutoAugment|RandAugment|TrivialAugment|AugMix|ElasticTransform|Gaussian(Noise)$"
    r"|.*Cutout|.*CutMix|.*Cutmix|.*MixUp|.*Mixup|CoarseDropout|GridDropout|GridDistortion|ShiftScaleRotate"
    r"|HorizontalFlip|VerticalFlip|.*Augment)",
)
FLAG_NAME = re.compile(r"train|aug|random|jitter|flip", re.IGNORECASE)
TRAIN_FLAG = re.compile(r"train", re.IGNORECASE)


def augmentation(train: View, evals: list[View], clock: Clock) -> Json:
    """Whether items of each loader change between fetches, and which random transforms run when they are fetched."""
    watcher = TransformWatcher()
    with watcher:
        train_items = attempt(lambda: variation(train, clock.until(2.0)))
        run = watcher.names()
    attached = attempt(lambda: sorted({type(t).__name__ for d in train.chain for t in _random_transforms(d)}))
    shared = [
        {"eval": i, "dataset": type(view.base).__name__, "loc": view.use.loc}
        for i, view in enumerate(evals)
        if not view.is_train_loader and any(a is b and not _is_data(a) for a in train.chain for b in view.chain)
    ]
    return {
        "train": train_items,
        "evals": attempt_each(evals, lambda view: variation(view, clock.until(1.0))),
        "shared": shared,
        "attributes": _transform_attributes(train.chain),
        "attached": attached,
        "run": run,
        "run_changes_input": watcher.changed,
        "alive": attempt(_alive_random_transforms),
        "crops": list(watcher.crops.values()),
    }


def _is_data(dataset: Any) -> bool:
    return isinstance(dataset, (list, tuple, torch.Tensor, TensorDataset))


def variation(view: View, until: float) -> Json:
    """How many items differ between fetches under different seeds, and which generators make the difference."""
    view.require_sample(1)
    keys = [key for key, _ in view.sample[:REPEATED_ITEMS]]
    varying: list[Any] = []
    fetched = 0
    changed_seed: list[bool] = []
    draws = 0
    for key in keys:
        digests = []
        for seed in SEEDS:
            next_epoch(view.chain, seed)
            seed_everything(1000 * seed + fetched)  # one coin an item, not one for all of them
            before = random_state()
            digests.append(item_digest(view.dataset[key]))
        draws += random_state() != before
        fetched += 1
        changed_seed.append(digests[0] != digests[1])
        if len(set(digests)) > 1:
            varying.append(key)
        if time.monotonic() > until:
            break
    result: Json = {
        "n": fetched,
        "seeds": len(SEEDS),
        "varying": len(varying),
        "differ_once": sum(changed_seed),
        "draws": draws,
        "batch_varies": False,
        "generators": _generators(view, varying[:8], until) if varying else [],
    }
    if not varying and view.own_collate:
        result["batch_varies"] = bool(attempt(lambda: _batch_varies(view)) is True)
    return result


def _batch_varies(view: View) -> bool:
    items = [item for _, item in view.sample[:8]]
    digests = set()
    for seed in range(6):
        seed_everything(seed)
        tensor = input_of(view.collate(list(items)))
        digests.add(None if tensor is None else digest_of(tensor))
    return len(digests) > 1


def _generators(view: View, keys: list[Any], until: float) -> list[str]:
    """Which of `torch`, `numpy` and `random` the items depend on; `own` when they vary with all of them fixed."""
    variants = {"own": (0, 0, 0), "torch": (1, 0, 0), "numpy": (0, 1, 0), "random": (0, 0, 1)}
    found: list[str] = []
    next_epoch(view.chain, 1)
    for number, key in enumerate(keys):
        base = None
        for name, changed in [("", (0, 0, 0)), *variants.items()]:
            if time.monotonic() > until + 1.0:
                return found
            torch_seed, numpy_seed, python_seed = (50 + number + 1000 * change for change in changed)
            seed_everything(torch_seed, numpy_seed=numpy_seed, python_seed=python_seed)
            digest = item_digest(view.dataset[key])
            if not name:
                base = digest
            elif digest != base and name not in found:
                found.append(name)
    return ["own"] if "own" in found else found


def _looks_random(cls: type) -> bool:
    """Whether a class is a random transform, by its home and its name."""
    module = str(cls.__module__)
    known = module.startswith(("torchvision.transforms", "albumentations", "kornia.augmentation", "timm.data"))
    if not known and (module.startswith(("torch.", "numpy", "sklearn", "scipy", "pandas")) or not _is_project(cls)):
        return False
    if issubclass(cls, (torch.utils.data.Dataset, torch.utils.data.Sampler)):
        return False
    is_callable = any("__call__" in vars(kind) for kind in cls.__mro__)
    return bool(RANDOM_NAME.match(cls.__name__)) and is_callable


def _is_project(cls: type) -> bool:
    module = sys.modules.get(str(cls.__module__))
    path = str(getattr(module, "__file__", "") or "")
    return not ("site-packages" in path or "dist-packages" in path or path.startswith(sys.base_prefix + os.sep + "lib"))


def _alive_random_transforms() -> list[str]:
    """Names of the random transforms that exist anywhere in the process."""
    verdicts: dict[type, bool] = {}
    names = set()
    for thing in gc.get_objects():
        cls = type(thing)
        if cls not in verdicts:
            verdicts[cls] = _looks_random(cls)
        if verdicts[cls]:
            names.add(cls.__name__)
    return sorted(names)[:20]


def _random_transforms(root: Any) -> list[Any]:
    """The random transforms that can be reached from a dataset through attributes, lists and dicts."""
    found: list[Any] = []
    seen: set[int] = set()
    todo: list[tuple[Any, int]] = [(value, 0) for value in attributes_of(root).values()]
    while todo and len(seen) < 2000:
        thing, depth = todo.pop()
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, torch.Tensor, torch.utils.data.Dataset)):
            continue
        seen.add(id(thing))
        if _looks_random(type(thing)):
            found.append(thing)
        if depth >= 6:
            continue
        if isinstance(thing, dict):
            todo.extend((value, depth + 1) for value in list(thing.values())[:50])
        elif isinstance(thing, (list, tuple)):
            todo.extend((value, depth + 1) for value in thing[:50] if not isinstance(value, (str, int, float)))
        elif isinstance(thing, torch.nn.Module) or callable(thing):
            todo.extend((value, depth + 1) for value in attributes_of(thing).values())
    return found


def _transform_attributes(chain: list[Any]) -> list[str]:
    """Names of dataset attributes that hold transforms: callables, or names that say so."""
    names = set()
    for dataset in chain:
        for name, value in attributes_of(dataset).items():
            if "transform" in name or "aug" in name or (callable(value) and not isinstance(value, type)):
                names.add(name)
    return sorted(names)


class TransformWatcher:
    """Notes which random transforms run while items are fetched, and whether they change what they are given."""

    def __init__(self) -> None:
        self.classes: set[str] = set()
        self.changed = False
        self.crops: dict[int, Json] = {}
        self._undo: list[Callable[[], Any]] = []

    def names(self) -> list[str]:
        """Class names of the random transforms that ran."""
        return sorted(self.classes)

    def _note(self, module: Any, args: Any, output: Any) -> None:
        if not _looks_random(type(module)):
            return
        self.classes.add(type(module).__name__)
        if type(module).__name__ == "RandomCrop" and getattr(module, "padding", 0) is None:
            with contextlib.suppress(Exception):
                self._note_crop(module, input_of(args), input_of(output))
        if self.changed:
            return
        with contextlib.suppress(Exception):
            before, after = input_of(args), input_of(output)
            if before is not None and after is not None and digest_of(before) != digest_of(after):
                self.changed = True

    def _note_crop(self, crop: Any, before: torch.Tensor | None, after: torch.Tensor | None) -> None:
        """Whether a crop without padding had any room: its result is smaller than what it was given."""
        if before is None or after is None:
            return
        entry = self.crops.setdefault(id(crop), {"size": list(crop.size), "calls": 0, "without_room": 0})
        entry["calls"] += 1
        entry["without_room"] += before.shape == after.shape

    def __enter__(self) -> TransformWatcher:
        from torch.nn.modules.module import register_module_forward_hook

        self._undo.append(register_module_forward_hook(self._note).remove)
        for cls in filter(_looks_random, {type(thing) for thing in gc.get_objects()}):
            if not issubclass(cls, torch.nn.Module) and "__call__" in vars(cls):
                self._wrap(cls)
        return self

    def _wrap(self, cls: Any) -> None:
        original = cls.__call__
        watcher = self

        def call(transform: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(transform, *args, **kwargs)
            watcher._note(transform, args or tuple(kwargs.values()), output)
            return output

        cls.__call__ = call
        self._undo.append(lambda: setattr(cls, "__call__", original))

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()


def flags(train: View, seen: Json, until: float) -> Json:
    """What switches of the training dataset (`augment`, `train`) do when its items are constant.

    `switches`: those that bring randomness back when they are turned. `active`: those that are on, say that they
    augment, and change the items when they are turned off.
    """
    items = seen.get("train") or {}
    if items.get("varying") or not items.get("n"):
        raise Unavailable("the training items are random")
    switches: dict[str, int] = {}
    active: dict[str, int] = {}
    for dataset in train.chain:
        for name, value in attributes_of(dataset).items():
            if not isinstance(value, bool) or not FLAG_NAME.search(name) or time.monotonic() > until:
                continue
            with contextlib.suppress(Exception):
                setattr(dataset, name, not value)
                switches[name] = variation(train, until)["varying"]
                if value and not TRAIN_FLAG.search(name):
                    active[name] = sum(
                        item_digest(train.dataset[key]) != item_digest(item) for key, item in train.sample[:10]
                    )
            setattr(dataset, name, value)
    return {
        "switches": {name: count for name, count in switches.items() if count},
        "active": {name: count for name, count in active.items() if count >= 3 and not switches[name]},
    }
