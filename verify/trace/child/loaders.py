"""Time-lapse: every pass over a DataLoader is cut to its first few batches and its last one.

The last batch is kept because it is the odd one: smaller than the others, and where averages and batch norms go wrong.
Worker processes are not started. What they would compute is computed here, with their random number generators, so
that a batch is bit for bit the one that a worker would have made.
"""

from __future__ import annotations

import random
import signal
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, _utils
from torch.utils.data.dataloader import _BaseDataLoaderIter, _DatasetKind

LARGEST_KEPT = 200 * 2**20
OUTSIDE = ("IterDataPipe", "MapDataPipe")
SHARED = ("type", "ABCMeta", "module", "function", "method")  # what they refer to is not the data set's own
# As they are before they are hooked.
_put_torch, _put_python = torch.set_rng_state, random.setstate
NUMPY_GENERATORS = ("Generator", "RandomState")


class WorkerStates:
    """The random number generators of a process: torch's, Python's and NumPy's."""

    def __init__(self) -> None:
        self.take()

    def take(self) -> None:
        """Remember the present states."""
        self.torch, self.python = torch.get_rng_state(), random.getstate()
        numpy = sys.modules.get("numpy")
        self.numpy = numpy.random.get_state() if numpy else None

    def put(self) -> None:
        """Go back to the remembered states."""
        _put_torch(self.torch)
        _put_python(self.python)
        if self.numpy is not None:
            numpy = sys.modules["numpy"].random
            getattr(numpy.set_state, "__wrapped__", numpy.set_state)(self.numpy)


class Worker:
    """What a worker process would be: its generators, its worker info and its fetcher."""

    def __init__(self, loader: DataLoader, number: int, base_seed: int) -> None:
        self.exhausted = False
        self.dataset = own_copy(loader.dataset)
        self.info = _utils.worker.WorkerInfo(
            id=number, num_workers=loader.num_workers, seed=base_seed + number, dataset=self.dataset
        )
        outside = WorkerStates()
        self.generators = generators_in(self.dataset)
        self.kept = [state_of(generator) for generator in self.generators]
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._seed(base_seed, number)
            self._as_worker(lambda: loader.worker_init_fn(number) if loader.worker_init_fn else None)
            self.states = WorkerStates()
        finally:
            outside.put()
            self.kept = swap_states(self.generators, self.kept)
            for signal_number, handler in handlers.items():
                if handler is not None:
                    signal.signal(signal_number, handler)
        self.new_fetcher(loader)

    @staticmethod
    def _seed(base_seed: int, number: int) -> None:
        random.seed(base_seed + number)
        torch.default_generator.manual_seed(base_seed + number)
        numpy = sys.modules.get("numpy")
        if numpy:
            numpy.random.seed(_utils.worker._generate_state(base_seed, number))

    def _as_worker(self, action: Any) -> Any:
        before = _utils.worker._worker_info
        _utils.worker._worker_info = self.info
        try:
            return action()
        finally:
            _utils.worker._worker_info = before

    def new_fetcher(self, loader: DataLoader) -> None:
        """Begin a pass over the data set."""
        self.exhausted = False
        self.fetcher = self._as_worker(lambda: make_fetcher(loader, self.dataset))

    def fetch(self, index: Any) -> Any:
        """A batch, computed with the generators of the worker."""
        outside = WorkerStates()
        self.states.put()
        self.kept = swap_states(self.generators, self.kept)
        try:
            return self._as_worker(lambda: self.fetcher.fetch(index))
        finally:
            self.states.take()
            outside.put()
            self.kept = swap_states(self.generators, self.kept)


def own_copy(dataset: Any, depth: int = 4) -> Any:
    """A data set of a worker's own: attributes that it sets are seen by no other; what they refer to is shared."""
    if not isinstance(dataset, Dataset) or not depth or type(dataset).__reduce_ex__ is not object.__reduce_ex__:
        return dataset
    try:
        copy = object.__new__(type(dataset))
        copy.__dict__.update(vars(dataset))
    except TypeError:  # a class without a dictionary of attributes
        return dataset
    for name, value in vars(dataset).items():
        if isinstance(value, Dataset):
            copy.__dict__[name] = own_copy(value, depth - 1)
    return copy


def generators_in(value: Any, depth: int = 5, found: dict[int, Any] | None = None) -> list[Any]:
    """The random number generators that a data set and its transforms hold."""
    found = {} if found is None else found
    if isinstance(value, (torch.Generator, random.Random)) or type(value).__name__ in NUMPY_GENERATORS:
        found[id(value)] = value
    elif depth and isinstance(value, (list, tuple)) and len(value) <= 100:
        for item in value:
            generators_in(item, depth - 1, found)
    elif depth and hasattr(value, "__dict__") and type(value).__name__ not in SHARED:
        for item in list(vars(value).values()):
            generators_in(item, depth - 1, found)
    return list(found.values())


def state_of(generator: Any) -> Any:
    """The state of a generator of torch, Python or NumPy."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if hasattr(generator, "bit_generator") else generator.get_state()


def swap_states(generators: list[Any], states: list[Any]) -> list[Any]:
    """Put states into generators; the result is the states that they had."""
    before = [state_of(generator) for generator in generators]
    for generator, state in zip(generators, states):
        if isinstance(generator, random.Random):
            generator.setstate(state)
        elif hasattr(generator, "bit_generator"):
            generator.bit_generator.state = state
        else:
            generator.set_state(state)
    return before


def make_fetcher(loader: DataLoader, dataset: Any) -> Any:
    """What turns indices into a batch."""
    kind, collation = loader._dataset_kind, loader._auto_collation
    return _DatasetKind.create_fetcher(kind, dataset, collation, loader.collate_fn, loader.drop_last)


class TimeLapseIter(_BaseDataLoaderIter):
    """The iterator of a DataLoader in a watched run."""

    def __init__(self, loader: DataLoader, watch: Any) -> None:
        super().__init__(loader)
        self.watch, self.loader = watch, loader
        count = loader.num_workers
        watch.is_seeding = True
        try:
            self.workers = [Worker(loader, number, self._base_seed) for number in range(count)]
        finally:
            watch.is_seeding = False
        self.fetcher = None if count else make_fetcher(loader, loader.dataset)
        self._begin()

    def _reset(self, loader: DataLoader, first_iter: bool = False) -> None:
        super()._reset(loader, first_iter)
        for worker in self.workers:
            worker.new_fetcher(loader)
        self._begin()

    def _begin(self) -> None:
        self.length = true_length(self.loader)
        self.limit = self.watch.limit(self.loader)
        self._sampler_iter = self._cut(iter(self._sampler_iter))
        self.ahead: deque[Any] = deque()
        for _ in range((self.loader.prefetch_factor or 0) * len(self.workers)):
            self._ask_ahead()
        self.turn = 0
        self.ended = False
        self.iteration = self.watch.begin_iteration(self)

    def _cut(self, indices: Iterator[Any]) -> Iterator[Any]:
        if self.length is None:
            yield from islice(indices, self.limit)
            return
        if self.length <= self.limit:
            yield from indices
            return
        yield from islice(indices, self.limit - 1)
        yield from list(islice(indices, self.length - self.limit + 1))[-1:]

    def _ask_ahead(self) -> None:
        """The indices of one more batch, as early as with workers: a sampler may draw from the global generators."""
        self.ahead.extend(islice(self._sampler_iter, 1))

    def __next__(self) -> Any:
        kept = self.watch.replay(self)
        if kept is not None:
            return kept
        try:
            data = super().__next__()
        except StopIteration:
            self.end(exhausted=True)
            raise
        self.watch.batch(self, data)
        return data

    def _next_data(self) -> Any:
        data = self._fetch_from_worker() if self.workers else self.fetcher.fetch(self._next_index())
        if self._pin_memory:
            data = _utils.pin_memory.pin_memory(data, self._pin_memory_device)
        return data

    def _fetch_from_worker(self) -> Any:
        if not self.ahead:
            raise StopIteration
        index = self.ahead.popleft()
        self._ask_ahead()
        while not all(worker.exhausted for worker in self.workers):
            worker = self.workers[self.turn % len(self.workers)]
            self.turn += 1
            if worker.exhausted:
                continue
            try:
                return worker.fetch(index)
            except StopIteration:
                if self._dataset_kind != _DatasetKind.Iterable:
                    raise
                worker.exhausted = True
        raise StopIteration

    def end(self, exhausted: bool) -> None:
        """Note the end of the pass, once."""
        if not self.ended:
            self.ended = True
            self.watch.end_iteration(self, exhausted)


# What a script sees of it: `'..." has no attribute 'next'` is said in torch's own words.
TimeLapseIter.__name__ = TimeLapseIter.__qualname__ = "_SingleProcessDataLoaderIter"


def true_length(loader: DataLoader) -> int | None:
    """Batches in a whole pass, None where nobody knows."""
    try:
        return int(_original_len(loader))
    except (TypeError, NotImplementedError, AttributeError):
        return None


_original_len = DataLoader.__len__
_original_get_iterator = DataLoader._get_iterator
_original_init = DataLoader.__init__


def install(watch: Any) -> None:
    """Hook into DataLoader.

    Args:
        watch: the recorder.
    """

    def init(loader: DataLoader, *args: Any, **options: Any) -> None:
        _original_init(loader, *args, **options)
        watch.new_loader(loader)

    def get_iterator(loader: DataLoader) -> Any:
        datapipe = any(kind.__name__ in OUTSIDE for kind in type(loader.dataset).__mro__)
        if datapipe or not watch.session.follow_thread() or watch.is_probing:
            return _original_get_iterator(loader)
        return TimeLapseIter(loader, watch)

    def length(loader: DataLoader) -> int:
        count = _original_len(loader)
        if not watch.session.is_recording or watch.is_probing:
            return count
        return min(count, watch.limit(loader))

    DataLoader.__init__ = init  # type: ignore[method-assign]
    DataLoader._get_iterator = get_iterator  # type: ignore[method-assign]
    DataLoader.__len__ = length  # type: ignore[method-assign]


def settings(loader: DataLoader) -> dict[str, Any]:
    """What a loader was told to do."""
    sampler = loader.sampler if loader.batch_sampler is None or loader.batch_size is not None else loader.batch_sampler
    name = type(sampler).__name__
    try:
        count = len(loader.dataset)  # type: ignore[arg-type]
    except Exception:
        count = None
    return {
        "batch_size": loader.batch_size,
        "shuffle": name == "RandomSampler",
        "sampler": name,
        "drop_last": bool(loader.drop_last),
        "num_workers": loader.num_workers,
        "worker_init_fn": loader.worker_init_fn is not None,
        "n": count,
        "length": true_length(loader),
        "dataset": type(loader.dataset).__name__,
        "iterable": isinstance(loader.dataset, IterableDataset),
    }
