"""Active probes of the data: what the live loaders and datasets of a watched run really deliver.

`probe_data` runs in a forked copy of the process, so it may reseed generators, fetch items and set attributes. It
measures and never judges: every number that a rule needs is in the dict that it returns. Each part is tried on its own,
within its own share of the time, and a part that cannot be measured says why under the key `skipped`.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import itertools
import json
import os
import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import (
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    get_worker_info,
)

from .names import held

Json = dict[str, Any]

MOST_SECONDS = 10.0
SHARE_OF_TIME = 0.5  # other probes come after these
MOST_NUMBERS = 8_000_000  # of inputs, for statistics
SAMPLE_ITEMS = 256  # fetched once from each loader's data, and shared by several probes
SAMPLE_BYTES = 32 << 20
REPEATED_ITEMS = 50  # fetched again under other seeds
SEEDS = (1, 2, 3)
MAX_KEYS = 2_000_000  # of a sampler that must be iterated to know what it yields
MAX_EVALS = 4
HASH_WORDS = 512  # 8-byte words of a row that are hashed; of a longer row every n-th
LEARN_ITEMS = 500

RANDOM_NAME = re.compile(
    r"^(Random|.*Jitter|Auto?Augment|AutoAugment|RandAugment|TrivialAugment|AugMix|ElasticTransform|Gaussian(Noise)$"
    r"|.*Cutout|.*CutMix|.*Cutmix|.*MixUp|.*Mixup|CoarseDropout|GridDropout|GridDistortion|ShiftScaleRotate"
    r"|HorizontalFlip|VerticalFlip|.*Augment)",
)
FLAG_NAME = re.compile(r"train|aug|random|jitter|flip", re.IGNORECASE)
TRAIN_FLAG = re.compile(r"train", re.IGNORECASE)
INNER_NAMES = ("dataset", "subset", "ds", "base", "base_dataset", "parent")
TARGET_NAMES = ("targets", "labels", "train_labels", "y", "ys", "target", "label", "Y", "_labels", "_targets")
INDEX_NAMES = ("indices", "indexes", "idx", "idxs", "index", "ids")


class Unavailable(Exception):  # noqa: N818 - an answer, not an error
    """A measurement that this run does not allow; the text says why."""


def probe_data(capture: Any) -> Json:
    """Measure the captured loaders.

    Args:
        capture: has `train` (a loader use or None), `evals` (loader uses), `num_classes`, `image_like`, `model` (the
            live module or None), `inputs` (args and kwargs of its last training pass, or None) and `deadline` (seconds
            of `time.monotonic`). A loader use has `loader`, `dataset`, `name` ("loader 0", with its number in the
            events), `loc`, `batches` [(inputs, targets), ...] and `settings`.

    Returns:
        A dict that `json` can write, one entry a probe.
    """
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _probe(capture)


def _probe(capture: Any) -> Json:
    from . import label_probes

    clock = Clock(capture.deadline)
    result: Json = {"num_classes": capture.num_classes, "image_like": bool(capture.image_like)}
    if capture.train is None:
        return {**result, **_of_hand_cut_batches(capture, clock)}
    train = _attempt_view(capture.train, "train", None)
    views = [_attempt_view(use, "eval", train) for use in list(capture.evals)[:MAX_EVALS]]
    evals = [view for view in views if view is not None]
    if train is None:
        return {**result, **_nothing(capture, "no training loader was seen")}

    for view, seconds in [(train, 1.2), *((view, 1.2 / len(evals)) for view in evals)]:
        view.fetch_sample(clock.until(seconds))
    result["train"] = train.describe()
    result["evals"] = [view.describe() for view in evals]
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("overlap", lambda: _each(evals, lambda view: overlap(train, view, clock.until(2.5)))),
        ("augmentation", lambda: augmentation(train, evals, clock)),
        ("stats", lambda: stats(train, evals, capture)),
        ("class_maps", lambda: class_maps(train, evals)),
        ("labels", lambda: labels(train, evals)),
        ("workers", lambda: workers(train, result.get("augmentation") or {}, clock.until(2.0))),
        ("flags", lambda: flags(train, result.get("augmentation") or {}, clock.until(1.0))),
        ("learn", lambda: learn(train, evals, clock.until(2.5))),
        ("masks", lambda: label_probes.masks(train, clock.until(1.0))),
        ("numbers", lambda: label_probes.numbers(train, evals, clock.until(1.0))),
    ]
    for name, part in parts:
        result[name] = {"skipped": "out of time"} if clock.left() <= 0 else _attempt(part)
    return json.loads(json.dumps(result, default=str))


def _nothing(capture: Any, why: str) -> Json:
    return {"evals": [], "stats": {"train": {"skipped": why}, "evals": [], **_model_stats(capture)}, "skipped": why}


def _of_hand_cut_batches(capture: Any, clock: Clock) -> Json:
    """What can be asked of tensors alone, when the script cuts its batches from them without a DataLoader."""
    from . import hand_cut

    try:
        use, others, overlaps = hand_cut.splits(capture, clock.until(4.0))
    except Exception as why:
        return _nothing(capture, str(why) if isinstance(why, Unavailable) else "no training loader was seen")
    train = View(use, "train", None)
    evals = [View(other, "eval", train) for other in others]
    for view in (train, *evals):
        view.fetch_sample(clock.until(1.0))
    cut = {"skipped": "batches are cut from tensors, without a loader"}
    result = {
        "train": train.describe(),
        "evals": [view.describe() for view in evals],
        "overlap": overlaps,
        "augmentation": cut,
        "stats": {"train": cut, "evals": [cut for _ in evals], **_model_stats(capture)},
        "class_maps": cut,
        "workers": cut,
        "flags": cut,
        "labels": _attempt(lambda: labels(train, evals)),
        "learn": _attempt(lambda: learn(train, evals, clock.until(2.0))),
    }
    return json.loads(json.dumps(result, default=str))


class Clock:
    """The time that is left for all probes together."""

    def __init__(self, deadline: float) -> None:
        now = time.monotonic()
        total = min(MOST_SECONDS, SHARE_OF_TIME * (deadline - now))
        self.deadline = now + total
        self.pace = total / MOST_SECONDS

    def left(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()

    def until(self, seconds: float) -> float:
        """The deadline of one probe that may take `seconds` when there is time enough for all."""
        return min(self.deadline, time.monotonic() + seconds * self.pace)


def _attempt(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Unavailable as why:
        return {"skipped": str(why)}
    except Exception as error:  # whatever the user's dataset raises is a reason to skip
        return {"skipped": f"{type(error).__name__}: {str(error)[:200]}"}


def _each(views: list[View], part: Callable[[View], Any]) -> list[Any]:
    return [_attempt(partial(part, view)) for view in views]


def _attempt_view(use: Any, role: str, train: View | None) -> View | None:
    if use is None:
        return None
    try:
        return View(use, role, train)
    except Exception:
        return None


# One loader, seen from outside


class View:
    """What can be known of one loader: its keys, its dataset down to the innermost one, and a sample of items."""

    def __init__(self, use: Any, role: str, train: View | None) -> None:
        self.use = use
        self.role = role
        self.loader = use.loader
        self.dataset: Any = use.dataset if use.dataset is not None else getattr(use.loader, "dataset", None)
        self.settings: Json = dict(use.settings or {})
        self.is_train_loader = train is not None and self.loader is not None and self.loader is train.loader
        self.sample: list[tuple[Any, Any]] = []  # (key, item)
        self.why_no_sample = ""
        self._batches: list[Any] | None = None
        self._stored: tuple[tuple[str, list[Any]] | None] | None = None
        self.map_style = (
            self.dataset is not None
            and not isinstance(self.dataset, IterableDataset)
            and hasattr(self.dataset, "__getitem__")
            and hasattr(self.dataset, "__len__")
        )
        self.keys: Sequence[Any] = _keys(self.loader, self.dataset) if self.map_style else ()
        self.chain: list[Any] = []
        self.base: Any = self.dataset
        self.positions: Sequence[int] | None = None  # of each key, in the innermost dataset; None: not known
        if self.map_style:
            self.chain, self.positions = _resolve(self.dataset, self.keys)
            self.base = self.chain[-1]

    def describe(self) -> Json:
        """The settings that rules ask for, and where the loader was made."""
        return {
            "id": _number(self.use.name),
            "name": self.use.name,
            "loc": self.use.loc,
            "dataset": type(self.dataset).__name__ if self.dataset is not None else None,
            "n": len(self.keys) if self.map_style else self.settings.get("n"),
            "batch_size": self.settings.get("batch_size"),
            "drop_last": bool(self.settings.get("drop_last")),
            "num_workers": self.settings.get("num_workers") or 0,
            "sampler": self.settings.get("sampler"),
            "iterable": isinstance(self.dataset, IterableDataset),
            "is_train_loader": self.is_train_loader,
            "names": self.names(),
            "hand_cut": bool(self.settings.get("hand_cut")),
        }

    def names(self) -> list[str]:
        """What the script calls the loader; of a loader that it does not hold under a name, the data set."""
        if self.loader is None:
            return [self.use.name]
        for wanted in (self.loader, self.dataset):
            found = [path for path, value in held() if value is wanted]
            if found:
                return sorted(set(found))[:12]
        return []

    def fetch_sample(self, until: float) -> None:
        """Fetch items that are spread over all keys, until the time or the memory is used up."""
        if not self.map_style or not len(self.keys):
            self.why_no_sample = "no map-style dataset was seen"
            return
        size = 0
        _seed_everything(0)
        for key in _spread(self.keys, SAMPLE_ITEMS):
            try:
                item = self.dataset[key]
            except Exception as error:
                self.why_no_sample = f"the dataset raises {type(error).__name__}: {str(error)[:120]}"
                return
            self.sample.append((key, item))
            size += sum(_nbytes(leaf) for leaf in _leaves(item))
            if time.monotonic() > until or size > SAMPLE_BYTES:
                return

    def require_sample(self, count: int) -> None:
        """Raise `Unavailable` unless `count` items could be fetched."""
        if self.why_no_sample and not self.sample:
            raise Unavailable(self.why_no_sample)
        if len(self.sample) < min(count, len(self.keys)):
            raise Unavailable(f"only {len(self.sample)} items could be fetched in time")

    def raw(self, until: float) -> tuple[str, list[Any]] | None:
        """What is stored for each sample, see `_raw`; looked up once."""
        if self._stored is None:
            self._stored = (_raw(self, until),)
        return self._stored[0]

    def collate(self, items: list[Any]) -> Any:
        """What the loader makes of items."""
        function = getattr(self.loader, "collate_fn", None)
        return function(items) if function else torch.utils.data.default_collate(items)

    @property
    def own_collate(self) -> bool:
        """Whether the loader has a collate function that is not torch's."""
        function = getattr(self.loader, "collate_fn", None)
        return function is not None and not str(getattr(function, "__module__", "")).startswith("torch.utils.data")

    @property
    def batches(self) -> list[Any]:
        """Batches as the loader makes them: of the sampled items where there are any, else those that the run saw."""
        if self._batches is None:
            self._batches = self._collated() or [(x, y) for x, y in self.use.batches if x is not None]
        return self._batches

    def _collated(self) -> list[Any]:
        if len(self.sample) < 16:
            return []
        items = [item for _, item in self.sample]
        try:
            if self.loader is not None and self.loader.batch_sampler is None:
                return [(_input(item), None) for item in items]
            made = [self.collate(items[i : i + 32]) for i in range(0, len(items) - len(items) % 2, 32)]
            pairs = [(_input(batch), _target(batch)) for batch in made]
            return pairs if all(isinstance(x, torch.Tensor) for x, _ in pairs) else []
        except Exception:  # a collate function that needs more than items
            return []


def _number(name: str) -> int | None:
    """The number of a loader in the events, from its name."""
    last = str(name).rpartition(" ")[2]
    return int(last) if last.isdigit() else None


def _keys(loader: Any, dataset: Any) -> Sequence[Any]:
    """Every key that the loader asks its dataset for in an epoch, in no order that means anything."""
    everything = range(len(dataset))
    sampler = getattr(loader, "sampler", None)
    if loader is None or sampler is None:
        return everything
    batch_sampler = getattr(loader, "batch_sampler", None)
    if batch_sampler is not None and type(batch_sampler) is not torch.utils.data.BatchSampler:
        batches = itertools.islice(iter(batch_sampler), MAX_KEYS)
        return list(itertools.islice(itertools.chain.from_iterable(batches), max(len(dataset), 1)))
    if type(sampler) in (SequentialSampler, RandomSampler):
        return everything
    if hasattr(sampler, "indices"):
        return [_plain(key) for key in sampler.indices]
    if hasattr(sampler, "weights"):
        return [key for key, weight in enumerate(torch.as_tensor(sampler.weights).tolist()) if weight > 0]
    return [_plain(key) for key in itertools.islice(iter(sampler), min(MAX_KEYS, 2 * len(dataset) + 1))]


def _plain(key: Any) -> Any:
    return int(key) if hasattr(key, "__index__") else key


def _inner(dataset: Any) -> Any:
    """The one dataset that a wrapper holds, or None."""
    if isinstance(dataset, (list, tuple, torch.Tensor)):
        return None
    own = _attributes(dataset)
    found = [value for value in own.values() if isinstance(value, torch.utils.data.Dataset) and value is not dataset]
    for name in INNER_NAMES:
        value = own.get(name)
        plain = isinstance(value, (list, tuple, dict, str, torch.Tensor)) or type(value).__module__ == "numpy"
        if (
            not found
            and value is not None
            and not plain
            and hasattr(value, "__getitem__")
            and hasattr(value, "__len__")
        ):
            found.append(value)
    return found[0] if len({id(value) for value in found}) == 1 else None


def _resolve(dataset: Any, keys: Sequence[Any]) -> tuple[list[Any], Sequence[int] | None]:
    """The datasets from the outermost to the innermost, and the positions of `keys` in the innermost."""
    chain = [dataset]
    known = isinstance(keys, range) or all(isinstance(key, int) for key in keys[:100])
    positions: Sequence[int] | None = keys if known else None
    for _ in range(8):
        inner = _inner(chain[-1])
        if inner is None or any(inner is seen for seen in chain):
            break
        mapping = _mapping(chain[-1], inner)
        if mapping is None:
            break
        if positions is not None and not isinstance(mapping, range):
            positions = [mapping[position] for position in positions]
        chain.append(inner)
    return chain, positions


def _mapping(wrapper: Any, inner: Any) -> Sequence[int] | None:
    """Position in `inner` of each item of `wrapper`; None when it cannot be known."""
    if isinstance(wrapper, Subset):
        return [int(position) for position in wrapper.indices]
    try:
        size, wanted = len(inner), len(wrapper)
    except Exception:  # a length that raises
        return None
    for name in INDEX_NAMES:
        value = _attributes(wrapper).get(name)
        if isinstance(value, (list, tuple, torch.Tensor)) or type(value).__module__ == "numpy":
            with contextlib.suppress(Exception):
                found = [int(position) for position in value]  # type: ignore[union-attr]
                if len(found) == wanted and (not found or max(found) < size):
                    return found
    return range(size) if size == wanted else None


def _attributes(thing: Any) -> Json:
    try:
        return dict(vars(thing))
    except TypeError:
        return {}


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the values, evenly spaced, in an order in which every prefix is spread out too."""
    size = len(values)
    chosen = list(values) if size <= count else [values[i * size // count] for i in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen


# Items


def _leaves(item: Any, depth: int = 0) -> Iterator[Any]:
    if depth > 6:
        return
    if isinstance(item, dict):
        for value in item.values():
            yield from _leaves(value, depth + 1)
    elif isinstance(item, (list, tuple)):
        for value in item:
            yield from _leaves(value, depth + 1)
    elif hasattr(item, "__dataclass_fields__"):
        for value in _attributes(item).values():
            yield from _leaves(value, depth + 1)
    elif hasattr(item, "keys") and hasattr(item, "__getitem__"):
        for key in item.keys():  # noqa: SIM118 - a batch encoding is no dict
            yield from _leaves(item[key], depth + 1)
    else:
        yield item


def _as_tensor(value: Any) -> torch.Tensor | None:
    """A tensor with the numbers of a tensor, array or picture; None for anything else."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if hasattr(value, "tobytes") and hasattr(value, "getbands"):  # a picture of PIL
        value = numpy.asarray(value)
    if isinstance(value, (numpy.ndarray, numpy.generic)) and value.dtype.kind in "biuf":
        value = numpy.asarray(value)
        if value.dtype.kind == "u" and value.dtype.itemsize > 1:
            value = value.astype("int64")
        readable = value.flags.writeable and all(stride >= 0 for stride in value.strides)
        return torch.from_numpy(value if readable else value.copy())
    return None


def _nbytes(leaf: Any) -> int:
    if isinstance(leaf, torch.Tensor):
        return leaf.numel() * leaf.element_size()
    return int(getattr(leaf, "nbytes", 0) or 64)


def _input(item: Any) -> torch.Tensor | None:
    """The first floating point tensor of an item or batch, else the first that has a dimension."""
    tensors = [tensor for tensor in map(_as_tensor, _leaves(item)) if tensor is not None and tensor.ndim]
    floating = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 1]
    return (floating or tensors or [None])[0]  # type: ignore[list-item]


def _target(item: Any) -> torch.Tensor | None:
    """The first integer leaf that is not the input: () of an item, (B,) of a batch."""
    own = _input(item)
    for leaf in _leaves(item):
        if isinstance(leaf, bool):
            continue
        tensor = torch.tensor(leaf) if isinstance(leaf, int) else _as_tensor(leaf)
        if tensor is None or tensor.is_floating_point() or tensor.is_complex():
            continue
        if own is not None and tensor.shape == own.shape and tensor.ndim > 1:
            continue
        if tensor.ndim <= 1 and tensor is not own:
            return tensor
    return None


def _label(item: Any) -> int | None:
    """The class of one item, when it has one integer for it."""
    target = _target(item)
    return int(target) if target is not None and target.numel() == 1 else None


def _digest(tensor: torch.Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    raw = plain.flatten().view(torch.uint8) if plain.numel() else plain
    try:
        data = raw.numpy().tobytes()
    except Exception:  # torch without numpy
        data = bytes(raw.tolist())
    return hashlib.blake2b(data + str(tuple(plain.shape)).encode(), digest_size=12).hexdigest()


def _item_digest(item: Any) -> str:
    tensor = _input(item)
    if tensor is None:
        raise Unavailable("the items hold no tensor, array or picture")
    return _digest(tensor)


def _seed_everything(seed: int, *, numpy_seed: int | None = None, python_seed: int | None = None) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also notes a call for CUDA, which takes long
    random.seed(seed if python_seed is None else python_seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed if numpy_seed is None else numpy_seed)


def _random_state() -> list[Any]:
    numpy = sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else None
    parts = [_digest(torch.get_rng_state()), hash(random.getstate())]
    return [*parts, (drawn[1].tobytes(), drawn[2])] if drawn is not None else parts


def _next_epoch(chain: list[Any], epoch: int) -> None:
    """Tell datasets that derive their randomness from the epoch that another one has begun."""
    for dataset in chain:
        with contextlib.suppress(Exception):
            if callable(getattr(dataset, "set_epoch", None)):
                dataset.set_epoch(epoch)
        for name in ("epoch", "_epoch", "current_epoch"):
            if isinstance(_attributes(dataset).get(name), int):
                with contextlib.suppress(Exception):
                    setattr(dataset, name, epoch)


# AUG: what is random in an item


def augmentation(train: View, evals: list[View], clock: Clock) -> Json:
    """Whether items of each loader change between fetches, and which random transforms run when they are fetched."""
    watcher = TransformWatcher()
    with watcher:
        train_items = _attempt(lambda: variation(train, clock.until(2.0)))
        run = watcher.names()
    attached = _attempt(lambda: sorted({type(t).__name__ for d in train.chain for t in _random_transforms(d)}))
    shared = [
        {"eval": i, "dataset": type(view.base).__name__, "loc": view.use.loc}
        for i, view in enumerate(evals)
        if not view.is_train_loader and any(a is b and not _is_data(a) for a in train.chain for b in view.chain)
    ]
    return {
        "train": train_items,
        "evals": _each(evals, lambda view: variation(view, clock.until(1.0))),
        "shared": shared,
        "attributes": _transform_attributes(train.chain),
        "attached": attached,
        "run": run,
        "run_changes_input": watcher.changed,
        "alive": _attempt(_alive_random_transforms),
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
            _next_epoch(view.chain, seed)
            _seed_everything(1000 * seed + fetched)  # one coin an item, not one for all of them
            before = _random_state()
            digests.append(_item_digest(view.dataset[key]))
        draws += _random_state() != before
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
        result["batch_varies"] = bool(_attempt(lambda: _batch_varies(view)) is True)
    return result


def _batch_varies(view: View) -> bool:
    items = [item for _, item in view.sample[:8]]
    digests = set()
    for seed in range(6):
        _seed_everything(seed)
        tensor = _input(view.collate(list(items)))
        digests.add(None if tensor is None else _digest(tensor))
    return len(digests) > 1


def _generators(view: View, keys: list[Any], until: float) -> list[str]:
    """Which of `torch`, `numpy` and `random` the items depend on; `own` when they vary with all of them fixed."""
    variants = {"own": (0, 0, 0), "torch": (1, 0, 0), "numpy": (0, 1, 0), "random": (0, 0, 1)}
    found: list[str] = []
    _next_epoch(view.chain, 1)
    for number, key in enumerate(keys):
        base = None
        for name, changed in [("", (0, 0, 0)), *variants.items()]:
            if time.monotonic() > until + 1.0:
                return found
            torch_seed, numpy_seed, python_seed = (50 + number + 1000 * change for change in changed)
            _seed_everything(torch_seed, numpy_seed=numpy_seed, python_seed=python_seed)
            digest = _item_digest(view.dataset[key])
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
    todo: list[tuple[Any, int]] = [(value, 0) for value in _attributes(root).values()]
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
            todo.extend((value, depth + 1) for value in _attributes(thing).values())
    return found


def _transform_attributes(chain: list[Any]) -> list[str]:
    """Names of dataset attributes that hold transforms: callables, or names that say so."""
    names = set()
    for dataset in chain:
        for name, value in _attributes(dataset).items():
            if "transform" in name or "aug" in name or (callable(value) and not isinstance(value, type)):
                names.add(name)
    return sorted(names)


class TransformWatcher:
    """Notes which random transforms run while items are fetched, and whether they change what they are given."""

    def __init__(self) -> None:
        self.classes: set[str] = set()
        self.changed = False
        self._undo: list[Callable[[], Any]] = []

    def names(self) -> list[str]:
        """Class names of the random transforms that ran."""
        return sorted(self.classes)

    def _note(self, module: Any, args: Any, output: Any) -> None:
        if not _looks_random(type(module)):
            return
        self.classes.add(type(module).__name__)
        if self.changed:
            return
        with contextlib.suppress(Exception):
            before, after = _input(args), _input(output)
            if before is not None and after is not None and _digest(before) != _digest(after):
                self.changed = True

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
        for name, value in _attributes(dataset).items():
            if not isinstance(value, bool) or not FLAG_NAME.search(name) or time.monotonic() > until:
                continue
            with contextlib.suppress(Exception):
                setattr(dataset, name, not value)
                switches[name] = variation(train, until)["varying"]
                if value and not TRAIN_FLAG.search(name):
                    active[name] = sum(
                        _item_digest(train.dataset[key]) != _item_digest(item) for key, item in train.sample[:10]
                    )
            setattr(dataset, name, value)
    return {
        "switches": {name: count for name, count in switches.items() if count},
        "active": {name: count for name, count in active.items() if count >= 3 and not switches[name]},
    }


# WORK: what workers draw


def workers(train: View, seen: Json, until: float) -> Json:
    """Items as two workers fetch them in two epochs: seeded as torch seeds its workers, then by `worker_init_fn`."""
    items = seen.get("train") or {}
    settings = train.settings
    if not (settings.get("num_workers") or 0):
        raise Unavailable("the training loader has no workers")
    if not items.get("varying"):
        raise Unavailable("the training items are not random")
    if not hasattr(os, "fork"):
        raise Unavailable("no fork on this platform")
    keys = [key for key, _ in train.sample[: min(items["n"], 32)]]
    made = {}
    for worker, epoch in ((0, 0), (1, 0), (0, 1)):
        made[worker, epoch] = _as_worker(train, keys, worker, epoch, until)
    count = min(len(digests) for digests in made.values())
    if not count:
        raise Unavailable("no item could be fetched in time")
    first, second, later = (made[pair][:count] for pair in ((0, 0), (1, 0), (0, 1)))
    return {
        "n": count,
        "expected_to_differ": round(count * items["differ_once"] / items["n"], 2),
        "equal_between_workers": sum(a == b for a, b in zip(first, second, strict=True)),
        "equal_between_epochs": sum(a == b for a, b in zip(first, later, strict=True)),
        "persistent": bool(getattr(train.loader, "persistent_workers", False)),
        "worker_init_fn": getattr(train.loader, "worker_init_fn", None) is not None,
        "generators": items.get("generators") or [],
    }


def _as_worker(view: View, keys: list[Any], worker: int, epoch: int, until: float) -> list[str]:
    """Digests of items that a process fetches which is set up like a worker of the loader."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            text = json.dumps(_worker_digests(view, keys, worker, epoch, until))
            with os.fdopen(write, "w") as pipe:
                pipe.write(text)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    if not text:
        raise Unavailable("the simulated worker ended without an answer")
    result: list[str] = json.loads(text)
    return result


def _worker_digests(view: View, keys: list[Any], worker: int, epoch: int, until: float) -> list[str]:
    from torch.utils.data._utils import worker as torch_worker

    base_seed = 123_456_789 + 7_654_321 * epoch
    seed = base_seed + worker
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(torch_worker._generate_state(base_seed, worker))
    count = view.settings.get("num_workers") or 2
    torch_worker._worker_info = torch_worker.WorkerInfo(id=worker, num_workers=count, seed=seed, dataset=view.dataset)
    _next_epoch(view.chain, 10 + epoch)
    init = getattr(view.loader, "worker_init_fn", None)
    if init is not None:
        init(worker)
    info = get_worker_info()
    dataset = info.dataset if info is not None else view.dataset
    digests = []
    share = time.monotonic() + max(0.0, until - time.monotonic()) / 3
    for key in keys:
        digests.append(_item_digest(dataset[key]))
        if time.monotonic() > share:
            break
    return digests


# SPLIT: what two loaders have in common


def overlap(train: View, other: View, until: float) -> Json:
    """The share of the other loader's samples that training sees too, by index or by raw content.

    Samples that occur twice within one split (blank pictures, discrete tables) say nothing and are left out.
    """
    if other.is_train_loader:
        return {"method": "same loader", "n": len(other.keys), "common": len(other.keys), "share": 1.0}
    if not train.map_style or not other.map_style or not len(other.keys) or not len(train.keys):
        return _overlap_of_batches(train, other)
    if train.base is other.base and train.positions is not None and other.positions is not None:
        mine, theirs = set(train.positions), set(other.positions)
        common = len(mine & theirs)
        return {"method": "index", "n": len(theirs), "common": common, "share": common / max(1, len(theirs))}
    ours, theirs_raw = train.raw(until), other.raw(until)
    if ours and theirs_raw and ours[0] == theirs_raw[0]:
        result = _common(ours[1], theirs_raw[1], method=ours[0].split(" ")[0])
        if ours[0] == "files" and not result["common"] and time.monotonic() < until:
            result = _common_files(ours[1], theirs_raw[1], until)
        return result
    return _overlap_of_items(train, other, until)


def _common(ours: list[Any], theirs: list[Any], method: str) -> Json:
    """Of values that are unique within their own split: how many of `theirs` are in `ours`."""
    unique_ours, unique_theirs = _unique(ours), _unique(theirs)
    common = len(unique_ours & unique_theirs)
    return {
        "method": method,
        "n": len(theirs),
        "unique": len(unique_theirs),
        "unique_train": len(unique_ours) / max(1, len(ours)),
        "common": common,
        "share": common / max(1, len(unique_theirs)),
    }


def _unique(values: list[Any]) -> set[Any]:
    once: set[Any] = set()
    twice: set[Any] = set()
    for value in values:
        (twice if value in once else once).add(value)
    return once - twice


def _raw(view: View, until: float) -> tuple[str, list[Any]] | None:
    """What is stored for each sample of a loader, before transforms: (kind, one hashable value a sample)."""
    if view.positions is None or view.base is None:
        return None
    try:
        size = len(view.base)
    except Exception:
        return None
    best: tuple[int, str, Any] | None = None
    for value in _stored(view.base):
        kind, width = _kind(value, size)
        if kind and (best is None or width > best[0]):
            best = (width, kind, value)
    if best is None:
        return None
    _, kind, value = best
    positions = view.positions
    if kind == "files":
        return kind, [_path(value[position]) for position in positions]
    if kind.startswith("rows"):
        tensor = _as_tensor(value)
        if tensor is None:
            return None
        return kind, _row_hashes(tensor, positions, until)
    if len(positions) > 100_000:
        return None
    hashes = [_stored_digest(value[position]) for position in positions]
    return ("items", hashes) if all(hashes) else None


def _stored(base: Any) -> list[Any]:
    if isinstance(base, TensorDataset):
        return list(base.tensors[:1])
    if isinstance(base, (list, tuple, torch.Tensor)) or type(base).__module__ == "numpy":
        return [base]
    return list(_attributes(base).values())


def _kind(value: Any, size: int) -> tuple[str, int]:
    """How a container stores samples, and how much of each: ("", 0) when it does not."""
    try:
        if len(value) != size or not size:
            return "", 0
    except TypeError:
        return "", 0
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        shape = tuple(value.shape[1:])
        if not shape or "object" in str(value.dtype):
            return "", 0
        width = 1
        for side in shape:
            width *= side
        return (f"rows {value.dtype} {shape}", width) if width > 1 else ("", 0)
    if not isinstance(value, (list, tuple)):
        return "", 0
    first = value[0]
    if _path(first) is not None:
        probes = [_path(value[i * (size - 1) // 4]) for i in range(5)]
        return ("files", 1 << 40) if all(p is not None and Path(p).is_file() for p in probes) else ("", 0)
    tensor = next((t for t in map(_as_tensor, _leaves(first)) if t is not None and t.numel() > 1), None)
    return ("items", tensor.numel()) if tensor is not None else ("", 0)


def _path(value: Any) -> str | None:
    """The file of a sample that is stored as a path, or as (path, label)."""
    if isinstance(value, (list, tuple)):
        if len(value) != 2 or not isinstance(value[1], int):
            return None
        value = value[0]
    if isinstance(value, (str, Path)) and len(str(value)) < 4096 and "\n" not in str(value):
        return os.path.realpath(value)
    return None


def _stored_digest(value: Any) -> str | None:
    tensor = next((t for t in map(_as_tensor, _leaves(value)) if t is not None and t.numel() > 1), None)
    return _digest(tensor) if tensor is not None else None


def _row_hashes(rows: torch.Tensor, positions: Sequence[int], until: float) -> list[int]:
    """A 63-bit hash of each row (N, ...) at `positions`, computed a block of rows at a time."""
    everything = isinstance(positions, range) and len(positions) == len(rows)
    if rows.ndim >= 3 and rows[0].numel() > 1024 and rows.shape[1] >= 16:
        rows = rows[:, 1 :: rows.shape[1] // 4]  # four lines of a picture tell it apart as well
    hashes = []
    weights: torch.Tensor | None = None
    for start in range(0, len(positions), 4096):
        end = start + 4096
        if time.monotonic() > until:
            raise Unavailable("too many samples to compare in time")
        block = rows[start:end] if everything else rows[torch.as_tensor(list(positions[start:end]))]
        flat = block.reshape(len(block), -1).contiguous().view(torch.uint8)
        if flat.shape[1] % 8:
            flat = torch.nn.functional.pad(flat, (0, 8 - flat.shape[1] % 8))
        words = flat.view(torch.int64)
        words = words[:, :: max(1, words.shape[1] // HASH_WORDS)]
        if weights is None:
            generator = torch.Generator().manual_seed(11)
            weights = torch.randint(-(1 << 62), 1 << 62, (words.shape[1],), generator=generator) | 1
        mixed = (words ^ (words >> 31)) * weights
        hashes.append((mixed ^ (mixed >> 29)).sum(dim=1))
    return torch.cat(hashes).tolist()


def _common_files(ours: list[str], theirs: list[str], until: float) -> Json:
    """Files of equal size, compared by content."""
    sizes: dict[int, list[str]] = {}
    for path in ours:
        sizes.setdefault(_size(path), []).append(path)
        if time.monotonic() > until:
            raise Unavailable("too many files to compare in time")
    by_content: dict[tuple[int, str], str] = {}
    hashed: set[int] = set()
    seen, common = 0, 0
    for path in _spread(theirs, 2000):
        size = _size(path)
        for twin in sizes.get(size, []) if size not in hashed else []:
            by_content[size, _file_digest(twin)] = twin
        hashed.add(size)
        seen += 1
        if size in sizes and (size, _file_digest(path)) in by_content:
            common += 1
        if time.monotonic() > until:
            break
    return {
        "method": "file content",
        "n": len(theirs),
        "unique": seen,
        "common": common,
        "share": common / max(1, seen),
    }


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def _file_digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.blake2b(file.read(1 << 16), digest_size=12).hexdigest()


def _overlap_of_items(train: View, other: View, until: float) -> Json:
    """Fetched items against fetched items; only where fetching is not random."""
    train.require_sample(3)
    other.require_sample(3)
    if variation(train, min(until, time.monotonic() + 0.3))["varying"]:
        raise Unavailable("the raw samples of the two splits cannot be compared, and the training items are random")
    ours = {_item_digest(item) for _, item in train.sample}
    for key in _spread(train.keys, 4000):
        if time.monotonic() > until:
            break
        ours.add(_item_digest(train.dataset[key]))
    theirs = _unique([_item_digest(item) for _, item in other.sample])
    common = len(ours & theirs)
    covered = len(ours) / max(1, len(train.keys))
    share = min(1.0, common / max(1, len(theirs)) / max(covered, 1e-9))
    return {
        "method": "sample of items",
        "n": len(other.keys),
        "unique": len(theirs),
        "unique_train": 1.0,
        "common": common,
        "share": share,
    }


def _overlap_of_batches(train: View, other: View) -> Json:
    """The rows of the batches that the run saw; all that can be compared without a map-style dataset."""
    ours = [_digest(row) for inputs, _ in train.use.batches if inputs is not None for row in inputs]
    theirs = [_digest(row) for inputs, _ in other.use.batches if inputs is not None for row in inputs]
    if len(ours) < 8 or len(theirs) < 8:
        raise Unavailable("too few samples of both splits were seen")
    return _common(ours, theirs, method="batches")


# STAT: numbers of the inputs


def stats(train: View, evals: list[View], capture: Any) -> Json:
    """Range, mean and standard deviation of the inputs of each loader, by channel or feature, and what smooths them."""
    result: Json = {
        "train": _attempt(lambda: _statistics(_rows(train))),
        "evals": _each(evals, lambda view: _statistics(_rows(view))),
        "normalize": _attempt(lambda: _normalizers(train)),
        "eval_normalize": _each(evals, _normalizers),
        **_model_stats(capture),
    }
    if capture.image_like:
        loaded = _each([*evals, train], lambda view: _roughness(_rows(view)))
        result["roughness"] = [result["roughness"], *loaded]
    return result


def _model_stats(capture: Any) -> Json:
    """What the model itself was given, which is after any scaling in the loop."""
    return {
        "first_layer": _attempt(lambda: _first_layer(capture)),
        "model_input": _attempt(lambda: _statistics(_model_input(capture))),
        "roughness": _attempt(lambda: _roughness(_model_input(capture))),
    }


def _rows(view: View) -> torch.Tensor:
    """(N, ...) inputs of a loader, in one tensor, where they have one shape."""
    tensors = [
        x.float() for x, _ in view.batches if isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim > 1
    ]
    tensors = [x for x in tensors if x.shape[1:] == tensors[0].shape[1:]]
    if not tensors:
        raise Unavailable("no batch with floating point inputs of one shape was seen")
    most = max(64, MOST_NUMBERS // max(1, tensors[0][0].numel()))
    return torch.cat(tensors)[: min(512, most)]


def _statistics(rows: torch.Tensor) -> Json:
    if rows.ndim not in (2, 4):
        raise Unavailable(f"inputs of {rows.ndim} dimensions")
    finite = rows.isfinite()
    rows = torch.where(finite, rows, torch.zeros_like(rows))
    dims = (0, 2, 3) if rows.ndim == 4 else (0,)
    each = rows.mean(dim=(2, 3)) if rows.ndim == 4 else rows
    count = len(rows)
    limit = 64
    error = each.std(dim=0) / count**0.5 if count > 1 else each[0] * 0
    return {
        "n": count,
        "shape": list(rows.shape[1:]),
        "non_finite": int((~finite).sum()),
        "min": rows.min().item(),
        "max": rows.max().item(),
        "mean": _rounded(rows.mean(dim=dims)[:limit]),
        "std": _rounded(rows.std(dim=dims, unbiased=False)[:limit]),
        "error": _rounded(error[:limit]),  # of the mean, in the inputs' own units
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _normalizers(view: View) -> list[Json]:
    """The constants of the Normalize transforms that hang on a loader's datasets."""
    found: list[Json] = []
    for dataset in view.chain:
        seen: set[int] = set()
        todo: list[tuple[Any, int]] = [(value, 0) for value in _attributes(dataset).values()]
        while todo and len(seen) < 2000:
            thing, depth = todo.pop()
            if (
                id(thing) in seen
                or depth > 6
                or isinstance(thing, (str, bytes, torch.Tensor, torch.utils.data.Dataset))
            ):
                continue
            seen.add(id(thing))
            if type(thing).__name__ == "Normalize" and hasattr(thing, "mean") and hasattr(thing, "std"):
                found.append({"mean": _numbers(thing.mean), "std": _numbers(thing.std)})
            elif isinstance(thing, (list, tuple)):
                todo.extend((value, depth + 1) for value in thing[:50])
            elif isinstance(thing, torch.nn.Module) or callable(thing):
                todo.extend((value, depth + 1) for value in _attributes(thing).values())
            elif isinstance(thing, dict) and depth:
                todo.extend((value, depth + 1) for value in list(thing.values())[:50])
    return found


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in torch.as_tensor(values, dtype=torch.float64).flatten().tolist()]


def _first_layer(capture: Any) -> Json:
    """The range of what reaches the first layer with weights, which is after any scaling within the model."""
    model, given = capture.model, capture.inputs
    if not isinstance(model, torch.nn.Module) or given is None:
        raise Unavailable("the model was not captured")
    seen: list[torch.Tensor] = []

    def note(_: Any, args: Any) -> None:
        if not seen and args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
            seen.append(args[0].detach().float())

    layers = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, layers)]
    modes = [(module, module.training) for module in model.modules()]
    args, kwargs = given
    try:
        model.eval()  # batch norms must not learn from this pass
        with torch.no_grad():
            model(*map(_few_rows, args), **{name: _few_rows(value) for name, value in kwargs.items()})
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    if not seen:
        raise Unavailable("the model has no layer with weights that takes a tensor")
    return {"min": seen[0].min().item(), "max": seen[0].max().item()}


def _few_rows(value: Any) -> Any:
    return value[:8] if isinstance(value, torch.Tensor) and value.ndim > 1 else value


def _model_input(capture: Any) -> torch.Tensor:
    """(B, ...) what the model was given when it was last trained."""
    leaves = _leaves(list(capture.inputs or ()))
    found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 1]
    if not found:
        raise Unavailable("the inputs of the model are no floating point tensor")
    return found[0].detach().cpu().float()


def _roughness(rows: torch.Tensor) -> Json:
    """Whether (N, 3, H, W) pictures look like (N, H, W, 3) memory, in which only every third number is a neighbour.

    `as_is` and `unmixed` are mean differences of neighbouring pixels, as delivered and read as (H, W, C). `comb` has,
    for both directions, the mean difference over 3 and 6 steps relative to that over 2, 4, 5 and 7 steps, and the gap
    between them in standard errors.
    """
    rows = rows[:128]
    if rows.ndim != 4 or rows.shape[1] != 3 or min(rows.shape[2:]) < 12:
        raise Unavailable("needs pictures with 3 channels")
    count, channels, height, width = rows.shape
    few = rows[: max(8, 1_000_000 // rows[0].numel())]
    unmixed = few.reshape(len(few), height, width, channels).permute(0, 3, 1, 2)
    part = rows[:, :, :64, :64]
    return {
        "n": count,
        "as_is": _neighbour_difference(few),
        "unmixed": _neighbour_difference(unmixed),
        "comb": {"across": _comb(part), "down": _comb(part.transpose(2, 3))},
    }


def _neighbour_difference(pictures: torch.Tensor) -> float:
    across = (pictures[..., 1:] - pictures[..., :-1]).abs().mean()
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean()
    return ((across + down) / pictures.std().clamp_min(1e-12)).item()


def _comb(pictures: torch.Tensor) -> list[float]:
    def difference(step: int) -> torch.Tensor:
        return (pictures[..., step:] - pictures[..., :-step]).abs().mean(dim=(1, 2, 3))

    on = (difference(3) + difference(6)) / 2
    off = (difference(2) + difference(4) + difference(5) + difference(7)) / 4
    gap = on - off
    error = gap.std() / len(gap) ** 0.5 if len(gap) > 1 else gap.abs().sum()
    ratio = on.mean() / off.mean().clamp_min(1e-12)
    return [round(ratio.item(), 4), round((gap.mean() / error.clamp_min(1e-12)).item(), 2)]


# LABEL and LEARN: what the targets say


def class_maps(train: View, evals: list[View]) -> Json:
    """Class name to number, of every split that has such a map."""
    ours = _class_map(train)
    if not ours:
        raise Unavailable("the training data has no map of class names")
    result = []
    for i, view in enumerate(evals):
        if view.is_train_loader or any(view.base is dataset for dataset in train.chain):
            continue
        theirs = _class_map(view)
        if theirs:
            different = [name for name in theirs if name in ours and ours[name] != theirs[name]]
            example = [[name, ours[name], theirs[name]] for name in different[:3]]
            result.append({"eval": i, "classes": len(theirs), "different": len(different), "example": example})
    return {"classes": len(ours), "evals": result}


def _class_map(view: View) -> dict[str, int]:
    for dataset in reversed(view.chain):
        own = {**{name: getattr(dataset, name, None) for name in ("class_to_idx", "classes")}, **_attributes(dataset)}
        for name, value in own.items():
            if not re.search(r"class|label|categor|cls", name) or not isinstance(value, (dict, list, tuple)):
                continue
            found = _as_class_map(value)
            if found:
                return found
    return {}


def _as_class_map(value: Any) -> dict[str, int]:
    if not 1 < len(value) <= 20_000:
        return {}
    if isinstance(value, dict):
        if all(isinstance(k, str) and type(v) is int for k, v in value.items()):
            return dict(value)
        if all(type(k) is int and isinstance(v, str) for k, v in value.items()):
            return {v: k for k, v in value.items()}
        return {}
    unique = all(isinstance(name, str) for name in value) and len(set(value)) == len(value)
    return {name: number for number, name in enumerate(value)} if unique else {}


def labels(train: View, evals: list[View]) -> Json:
    """Which labels occur, how often, in the whole split where its targets can be read, else in the sample."""
    return {
        "train": _attempt(lambda: _histogram(train)),
        "evals": _each(evals, _histogram),
    }


def _histogram(view: View) -> Json:
    seen = [y for _, y in view.use.batches if isinstance(y, torch.Tensor) and not y.is_floating_point() and y.ndim == 1]
    in_batches = torch.cat(seen).tolist() if seen else []
    whole = _all_targets(view)
    values = whole or [label for label in (_label(item) for _, item in view.sample) if label is not None] or in_batches
    if not values:
        raise Unavailable("the targets are not class numbers")
    counts: dict[int, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return {
        "n": len(values),
        "whole": bool(whole),
        "distinct": len(counts),
        "min": min(counts),
        "max": max(counts),
        "counts": [[value, counts[value]] for value in sorted(counts)[:1100]],
        "in_batches": sorted(set(in_batches))[:1100],
        "n_in_batches": len(in_batches),
    }


def _all_targets(view: View) -> list[int]:
    """Every label of a split, read from its dataset and checked against fetched items; empty when it cannot be."""
    if view.positions is None:
        return []
    stored = _stored_targets(view.base)
    if stored is None or len(stored) != len(view.base):
        return []
    values = [int(stored[position]) for position in view.positions]
    by_key = dict(zip(view.keys, values, strict=True))
    checked = [(by_key[key], _label(item)) for key, item in view.sample[:64] if key in by_key]
    agree = [mine == fetched for mine, fetched in checked if fetched is not None]
    return values if agree and all(agree) else []


def _stored_targets(base: Any) -> list[int] | None:
    if isinstance(base, TensorDataset):
        candidates: list[Any] = list(base.tensors[1:2])
    else:
        own = _attributes(base)
        candidates = [own[name] for name in TARGET_NAMES if name in own]
        candidates += [[pair[1] for pair in own[name]] for name in ("samples", "imgs") if _are_pairs(own.get(name))]
    for value in candidates:
        tensor = _as_tensor(value) if not isinstance(value, (list, tuple)) else None
        if tensor is not None and tensor.ndim == 1 and not tensor.is_floating_point():
            return tensor.tolist()
        if isinstance(value, (list, tuple)) and value and all(isinstance(_plain(v), int) for v in value[:100]):
            return [_plain(v) for v in value]
    return None


def _are_pairs(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (list, tuple)) and len(value[0]) == 2
    )


def learn(train: View, evals: list[View], until: float) -> Json:
    """How well the nearest other sample predicts a sample's label, within each split and from one to the other.

    `z` is the distance from what shuffled labels give, in standard deviations of it.
    """
    candidates = [view for view in evals if not view.is_train_loader]
    if not candidates:
        raise Unavailable("needs a validation split")
    other = candidates[0]
    with _transforms_of(other, train):
        ours = _features(train, (time.monotonic() + until) / 2)
    theirs = _features(other, until)
    count = min(len(ours[1]), len(theirs[1]))
    if count < 60:
        raise Unavailable("too few samples with a class number")
    from .label_probes import by_plane

    near_ours = _nearest(ours[0], ours[0], same=True)
    near_theirs = _nearest(theirs[0], theirs[0], same=True)
    result: Json = {
        "train": _agreement(ours[1], ours[1][near_ours]),
        "eval": _agreement(theirs[1], theirs[1][near_theirs]),
        "same_labels": sorted(set(ours[1].tolist())) == sorted(set(theirs[1].tolist())),
        "classes": len(set(ours[1].tolist())),
    }
    if ours[0].shape[1] == theirs[0].shape[1]:
        predicted = ours[1][_nearest(theirs[0], ours[0], same=False)]
        result["across"] = _agreement(theirs[1], predicted)
        result["mapping"] = _relabelling(predicted, theirs[1])
        result["floating"] = ours[3]
        result["other_ways"] = [
            _agreement(ours[1], ours[1][_nearest(ours[2], ours[2], same=True)]),
            _agreement(theirs[1], ours[1][_nearest(theirs[2], ours[2], same=False)]),
            _agreement(theirs[1], by_plane(ours, theirs)),
            _agreement(theirs[1], by_plane((ours[2], ours[1]), (theirs[2], theirs[1]))),
        ]
    return result


@contextlib.contextmanager
def _transforms_of(source: View, target: View) -> Iterator[None]:
    """Lend the transforms of one split to the datasets of another, so that its items come without augmentation."""
    lent = []
    theirs = {name: value for dataset in reversed(source.chain) for name, value in _attributes(dataset).items()}
    for dataset in target.chain:
        for name, value in _attributes(dataset).items():
            is_switch = isinstance(value, bool) and isinstance(theirs.get(name), bool) and FLAG_NAME.search(name)
            if name in theirs and theirs[name] is not value and ("transform" in name or is_switch):
                with contextlib.suppress(Exception):
                    setattr(dataset, name, theirs[name])
                    lent.append((dataset, name, value))
    try:
        yield
    finally:
        for dataset, name, value in lent:
            setattr(dataset, name, value)


def _features(view: View, until: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """Standardised samples without augmentation (N, F), their labels (N,), what does not depend on place (N, G).

    The last value says whether the samples are floating point numbers.
    """
    from .label_probes import spectrum

    view.require_sample(60)
    whole: list[torch.Tensor] = []
    floating = True
    pictures: list[torch.Tensor] = []
    targets: list[int] = []
    for key in _spread(view.keys, LEARN_ITEMS):
        if time.monotonic() > until:
            break
        _seed_everything(len(targets))
        item = view.dataset[key]
        tensor, label = _input(item), _label(item)
        if tensor is None or label is None:
            raise Unavailable("the items are not a tensor with a class number")
        if len(pictures) < 12:
            _seed_everything(1000 + len(targets))
            again = _input(view.dataset[key])
            if again is None or _digest(again) != _digest(tensor):
                raise Unavailable("the items are random")
        floating = floating and tensor.is_floating_point()
        pictures.append(_small(tensor.float()))
        whole.append(tensor)
        targets.append(label)
    if len(pictures) < 60:
        raise Unavailable("too few items could be fetched in time")
    if len({tuple(p.shape) for p in pictures}) != 1:
        raise Unavailable("the items differ in shape")
    return _standardised(pictures), torch.tensor(targets), _standardised([spectrum(x.float()) for x in whole]), floating


def _standardised(samples: list[torch.Tensor]) -> torch.Tensor:
    rows = torch.stack(samples)
    return (rows - rows.mean(dim=0)) / rows.std(dim=0).clamp_min(1e-6 + 0.05 * float(rows.std()))


def _small(tensor: torch.Tensor) -> torch.Tensor:
    """At most about 1024 numbers of a sample: pictures are averaged to 8x8, anything else is thinned."""
    if tensor.ndim in (2, 3) and min(tensor.shape[-2:]) >= 12:
        tensor = torch.nn.functional.adaptive_avg_pool2d(tensor.reshape(1, -1, *tensor.shape[-2:]), 8)
    flat = tensor.flatten()
    return flat[:: max(1, len(flat) // 1024)]


def _nearest(queries: torch.Tensor, rows: torch.Tensor, *, same: bool) -> torch.Tensor:
    distance = torch.cdist(queries, rows)
    if same:
        distance.fill_diagonal_(float("inf"))
    return distance.argmin(dim=1)


def _agreement(labels_seen: torch.Tensor, predicted: torch.Tensor) -> Json:
    accuracy = (labels_seen == predicted).float().mean().item()
    generator = torch.Generator().manual_seed(0)
    chance = torch.stack(
        [
            (labels_seen[torch.randperm(len(labels_seen), generator=generator)] == predicted).float().mean()
            for _ in range(200)
        ]
    )
    spread = max(chance.std().item(), 0.5 / len(labels_seen))
    return {
        "n": len(labels_seen),
        "accuracy": round(accuracy, 4),
        "chance": round(chance.mean().item(), 4),
        "z": round((accuracy - chance.mean().item()) / spread, 2),
    }


def _relabelling(predicted: torch.Tensor, truth: torch.Tensor) -> Json:
    """The accuracy across splits if each training label stood for the evaluation label that it mostly meets.

    The relabelling is learned on one half of the samples and scored on the other.
    """
    half = len(truth) // 2
    table: dict[int, int] = {}
    for value in predicted[:half].unique().tolist():
        met = truth[:half][predicted[:half] == value]
        table[value] = int(met.mode().values)
    renamed = torch.tensor([table.get(value, -1) for value in predicted[half:].tolist()])
    moved = [[old, new] for old, new in sorted(table.items()) if old != new]
    return {**_agreement(truth[half:], renamed), "moved": moved[:10], "count": len(moved)}
