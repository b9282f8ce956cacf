"""One loader, seen from outside: its keys, its dataset down to the innermost one, and a sample of items."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler, Subset

from .items import attributes_of, input_of, leaves_of, seed_everything, size_of, spread_out, target_of
from .measuring import Json, Unavailable
from .names import held
from .opened import data_file, opened
from .stored import stored_samples

SAMPLE_ITEMS = 256  # fetched once from each loader's data, and shared by several probes
SAMPLE_BYTES = 32 << 20
MAX_KEYS = 2_000_000  # of a sampler that must be iterated to know what it yields
INNER_NAMES = ("dataset", "subset", "ds", "base", "base_dataset", "parent")
INDEX_NAMES = ("indices", "indexes", "idx", "idxs", "index", "ids")


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
        self.files: dict[Any, str] = {}  # of items that are read from one file each
        self.drawn: tuple[torch.Tensor, torch.Tensor] | None = None  # inputs and labels, see split_pictures.py
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
        seed_everything(0)
        for key in spread_out(self.keys, SAMPLE_ITEMS):
            try:
                item = self.fetch(key)
            except Exception as error:
                self.why_no_sample = f"the dataset raises {type(error).__name__}: {str(error)[:120]}"
                return
            self.sample.append((key, item))
            size += sum(size_of(leaf) for leaf in leaves_of(item))
            if time.monotonic() > until or size > SAMPLE_BYTES:
                return

    def fetch(self, key: Any) -> Any:
        """One item; which file it is read from is noted."""
        with opened() as paths:
            item = self.dataset[key]
        file = data_file(paths) if paths else None
        if file is not None:
            self.files[key] = file
        return item

    def require_sample(self, count: int) -> None:
        """Raise `Unavailable` unless `count` items could be fetched."""
        if self.why_no_sample and not self.sample:
            raise Unavailable(self.why_no_sample)
        if len(self.sample) < min(count, len(self.keys)):
            raise Unavailable(f"only {len(self.sample)} items could be fetched in time")

    def raw(self, until: float) -> tuple[str, list[Any]] | None:
        """What is stored for each sample, see `stored_samples`; looked up once."""
        if self._stored is None:
            self._stored = (stored_samples(self, until),)
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
                return [(input_of(item), None) for item in items]
            made = [self.collate(items[i : i + 32]) for i in range(0, len(items) - len(items) % 2, 32)]
            pairs = [(input_of(batch), target_of(batch)) for batch in made]
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
        return [plain_key(key) for key in sampler.indices]
    if hasattr(sampler, "weights"):
        return [key for key, weight in enumerate(torch.as_tensor(sampler.weights).tolist()) if weight > 0]
    return [plain_key(key) for key in itertools.islice(iter(sampler), min(MAX_KEYS, 2 * len(dataset) + 1))]


def plain_key(key: Any) -> Any:
    """A key that stands for a position, as an int."""
    return int(key) if hasattr(key, "__index__") else key


def _inner(dataset: Any) -> Any:
    """The one dataset that a wrapper holds, or None."""
    if isinstance(dataset, (list, tuple, torch.Tensor)):
        return None
    own = attributes_of(dataset)
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
        value = attributes_of(wrapper).get(name)
        if isinstance(value, (list, tuple, torch.Tensor)) or type(value).__module__ == "numpy":
            with contextlib.suppress(Exception):
                found = [int(position) for position in value]  # type: ignore[union-attr]
                if len(found) == wanted and (not found or max(found) < size):
                    return found
    return range(size) if size == wanted else None
