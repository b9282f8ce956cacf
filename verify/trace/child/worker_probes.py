"""What the workers of a loader draw."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any

import torch
from torch.utils.data import get_worker_info

from .items import item_digest, next_epoch
from .measuring import Json, Unavailable
from .views import View


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
    next_epoch(view.chain, 10 + epoch)
    init = getattr(view.loader, "worker_init_fn", None)
    if init is not None:
        init(worker)
    info = get_worker_info()
    dataset = info.dataset if info is not None else view.dataset
    digests = []
    share = time.monotonic() + max(0.0, until - time.monotonic()) / 3
    for key in keys:
        digests.append(item_digest(dataset[key]))
        if time.monotonic() > share:
            break
    return digests
