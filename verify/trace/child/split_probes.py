"""What two loaders have in common."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from .augmentation_probes import variation
from .items import digest_of, item_digest, spread_out
from .learn_probes import transforms_of
from .measuring import Json, Unavailable
from .stored import without_padding
from .views import View

LEAST_FILES = 16


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
        result = in_common(ours[1], theirs_raw[1], method=ours[0].split(" ")[0])
        if ours[0] == "files" and not result["common"] and time.monotonic() < until:
            result = _common_files(ours[1], theirs_raw[1], until)
            result = result if result["common"] else _as_the_same_pictures(train, other, until) or result
        return result
    if ours and theirs_raw:
        padded = without_padding(train, other, until)
        result = in_common(*padded, method="rows") if padded else {}
        if result.get("common"):
            return result
    if _have_files(train) and _have_files(other):
        made = _overlap_of_opened(train, other, until)
        return made if made["common"] else _as_the_same_pictures(train, other, until) or made
    return _overlap_of_items(train, other, until)


def _have_files(view: View) -> bool:
    """Whether each item is read from a file of its own."""
    count = len(view.sample)
    return count >= LEAST_FILES and len(set(view.files.values())) >= 0.9 * count


def _overlap_of_opened(train: View, other: View, until: float) -> Json:
    """The files that items are read from, by their content."""
    ours: dict[str, str] = {}
    for key in [*train.files, *spread_out(train.keys, 4000)]:
        if key not in train.files:
            train.fetch(key)
        path = train.files.get(key)
        if path is not None and path not in ours:
            ours[path] = _file_digest(path)
        if time.monotonic() > until:
            break
    theirs = met_once([_file_digest(path) for path in set(other.files.values())])
    common = len(theirs & met_once(list(ours.values())))
    covered = len(ours) / max(1, len(set(train.keys)))
    return {
        "method": "file content",
        "n": len(other.keys),
        "unique": len(theirs),
        "unique_train": 1.0,
        "common": common,
        "share": min(1.0, common / max(1, len(theirs)) / max(covered, 1e-9)),
    }


def _as_the_same_pictures(train: View, other: View, until: float) -> Json | None:
    """Items of other files that are equal nevertheless, once both are read without augmentation; None if none are."""
    try:
        with transforms_of(other, train):
            made = _overlap_of_items(train, other, until)
    except Exception:  # whatever the datasets make of each other's transforms
        return None
    return made if made["common"] else None


def in_common(ours: list[Any], theirs: list[Any], method: str) -> Json:
    """Of values that are unique within their own split: how many of `theirs` are in `ours`."""
    unique_ours, unique_theirs = met_once(ours), met_once(theirs)
    common = len(unique_ours & unique_theirs)
    return {
        "method": method,
        "n": len(theirs),
        "unique": len(unique_theirs),
        "unique_train": len(unique_ours) / max(1, len(ours)),
        "common": common,
        "share": common / max(1, len(unique_theirs)),
    }


def met_once(values: list[Any]) -> set[Any]:
    """The values that occur once."""
    once: set[Any] = set()
    twice: set[Any] = set()
    for value in values:
        (twice if value in once else once).add(value)
    return once - twice


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
    for path in spread_out(theirs, 2000):
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
    ours = {item_digest(item) for _, item in train.sample}
    for key in spread_out(train.keys, 4000):
        if time.monotonic() > until:
            break
        ours.add(item_digest(train.dataset[key]))
    theirs = met_once([item_digest(item) for _, item in other.sample])
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
    ours = [digest_of(row) for inputs, _ in train.use.batches if inputs is not None for row in inputs]
    theirs = [digest_of(row) for inputs, _ in other.use.batches if inputs is not None for row in inputs]
    if len(ours) < 8 or len(theirs) < 8:
        raise Unavailable("too few samples of both splits were seen")
    return in_common(ours, theirs, method="batches")
