"""Active probes of the data: what the live loaders and datasets of a watched run really deliver.

`probe_data` runs in a forked copy of the process, so it may reseed generators, fetch items and set attributes. It
measures and never judges: every number that a rule needs is in the dict that it returns. Each part is tried on its own,
within its own share of the time, and a part that cannot be measured says why under the key `skipped`.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch

from . import hand_cut
from .augmentation_probes import augmentation, flags
from .group_probes import shared_groups
from .held_data import held_changes
from .input_probes import model_stats, stats
from .label_probes import class_maps, labels
from .learn_probes import learn, numbers
from .mask_probes import masks
from .measuring import Clock, Json, Unavailable, attempt, attempt_each
from .split_pictures import tells, turned
from .split_probes import overlap
from .stored_probes import sampler_classes, stored_changes
from .views import View
from .worker_probes import workers

MAX_EVALS = 4


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
        ("overlap", lambda: attempt_each(evals, lambda view: overlap(train, view, clock.until(2.5)))),
        ("groups", lambda: attempt_each(evals, lambda view: shared_groups(train, view))),
        ("augmentation", lambda: augmentation(train, evals, clock)),
        ("stats", lambda: stats(train, evals, capture)),
        ("sampler", lambda: sampler_classes(train)),
        ("stored", lambda: stored_changes(train, clock.until(1.0))),
        ("class_maps", lambda: class_maps(train, evals)),
        ("labels", lambda: labels(train, evals)),
        ("workers", lambda: workers(train, result.get("augmentation") or {}, clock.until(2.0))),
        ("flags", lambda: flags(train, result.get("augmentation") or {}, clock.until(1.0))),
        ("learn", lambda: learn(train, evals, clock.until(2.5))),
        ("turned", lambda: attempt_each(evals, lambda view: turned(train, view, clock.until(1.5)))),
        ("tells", lambda: attempt_each([train, *evals], lambda view: tells(view, clock.until(1.0)))),
        ("masks", lambda: masks(train, clock.until(1.0))),
        ("numbers", lambda: numbers(train, evals, clock.until(1.0))),
    ]
    for name, part in parts:
        result[name] = {"skipped": "out of time"} if clock.left() <= 0 else attempt(part)
    return json.loads(json.dumps(result, default=str))


def _nothing(capture: Any, why: str) -> Json:
    return {"evals": [], "stats": {"train": {"skipped": why}, "evals": [], **model_stats(capture)}, "skipped": why}


def _of_hand_cut_batches(capture: Any, clock: Clock) -> Json:
    """What can be asked of tensors alone, when the script cuts its batches from them without a DataLoader."""
    stored = attempt(lambda: held_changes(capture, clock.until(1.0)))
    try:
        use, others, overlaps = hand_cut.splits(capture, clock.until(4.0))
    except Exception as why:
        nothing = _nothing(capture, str(why) if isinstance(why, Unavailable) else "no training loader was seen")
        return {**nothing, "stored": stored}
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
        "stats": {"train": cut, "evals": [cut for _ in evals], **model_stats(capture)},
        "class_maps": cut,
        "workers": cut,
        "flags": cut,
        "stored": stored,
        "labels": attempt(lambda: labels(train, evals)),
        "learn": attempt(lambda: learn(train, evals, clock.until(2.0))),
        "turned": attempt_each(evals, lambda view: turned(train, view, clock.until(1.0))),
        "tells": attempt_each([train, *evals], lambda view: tells(view, clock.until(1.0))),
    }
    return json.loads(json.dumps(result, default=str))


def _attempt_view(use: Any, role: str, train: View | None) -> View | None:
    if use is None:
        return None
    try:
        return View(use, role, train)
    except Exception:
        return None
