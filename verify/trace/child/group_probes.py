"""Whether samples of one patient, subject or speaker are in training and in an evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .items import attributes_of, target_of
from .measuring import Json, Unavailable
from .views import View

GROUP = re.compile(
    r"(?:^|_)(patient|subject|participant|person|speaker|user|writer|scene|session|video|donor|animal|group)s?"
    r"(?:_?(?:ids?|idx|index|number|codes?))?$",
    re.IGNORECASE,
)
FEWEST_GROUPS, LEAST_PER_GROUP, MOST_SAMPLES = 6, 1.5, 1_000_000
# With as many targets as groups, the group is what is to be recognised.
OF_TARGETS = 0.8


def shared_groups(train: View, other: View) -> Json:
    """The groups that samples of both loaders belong to, by a field of one name in both datasets."""
    if other.is_train_loader:
        raise Unavailable("the evaluation runs over the training loader")
    ours, theirs = _groups(train), _groups(other)
    for name in sorted(set(ours) & set(theirs)):
        mine, yours = set(ours[name]), set(theirs[name])
        count = len(ours[name]) + len(theirs[name])
        repeated = len(ours[name]) > len(mine) and count >= LEAST_PER_GROUP * len(mine | yours)
        repeated = repeated and min(len(mine), len(yours)) >= FEWEST_GROUPS
        # Numbers without a gap may be counted anew in each split.
        if repeated and not _is_counted(yours) and not _are_targets(other, theirs[name]):
            common = len(mine & yours)
            stem = GROUP.search(name)
            return {
                "field": name,
                "stem": stem[1].lower() if stem else "",
                "n": len(yours),
                "common": common,
                "share": common / len(yours),
            }
    raise Unavailable("the datasets hold no field that says which samples belong together")


def _groups(view: View) -> dict[str, list[str]]:
    """The group of each sample of a loader, for each field of its dataset that names one."""
    if not view.map_style or len(view.keys) > MOST_SAMPLES:
        return {}
    found = {**_fields_of_items(view), **_fields(view.dataset, view.keys)}
    if view.base is not view.dataset and view.positions is not None:
        found = {**_fields(view.base, view.positions), **found}
    return found


def _fields(dataset: Any, positions: Any) -> dict[str, list[str]]:
    count, found = len(dataset), {}
    for name, value in attributes_of(dataset).items():
        columns = {name: value}
        if type(value).__module__.startswith("pandas") and hasattr(value, "columns"):
            columns = {str(column): value[column].to_numpy() for column in value.columns}
        elif isinstance(value, dict):
            columns = {str(column): values for column, values in value.items()}
        elif isinstance(value, (list, tuple)) and len(value) == count and count and isinstance(value[0], dict):
            columns = {str(column): [row.get(column) for row in value] for column in value[0]}
        for column, values in columns.items():
            if GROUP.search(column) and hasattr(values, "__len__") and len(values) == count:
                plain = values.tolist() if hasattr(values, "tolist") else values
                if isinstance(plain, (list, tuple)) and all(isinstance(v, (str, int)) for v in plain):
                    found[column] = [str(plain[int(position)]) for position in positions]
    return found


def _fields_of_items(view: View) -> dict[str, list[str]]:
    """What the fetched items themselves say, in a dict at any depth; of the sampled ones alone."""
    found: dict[str, list[str]] = {}
    for _, item in view.sample:
        for name, value in _entries(item):
            if GROUP.search(name) and isinstance(value, (str, int)) and not isinstance(value, bool):
                found.setdefault(name, []).append(str(value))
    return {name: values for name, values in found.items() if len(values) == len(view.sample)}


def _entries(item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, dict):
        for name, value in item.items():
            yield str(name), value
            yield from _entries(value)
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from _entries(part)


def _is_counted(groups: set[str]) -> bool:
    if not all(group.isdigit() for group in groups):
        return False
    numbers = {int(group) for group in groups}
    return max(numbers) - min(numbers) + 1 == len(numbers)


def _are_targets(view: View, groups: list[str]) -> bool:
    of_items = len(groups) == len(view.sample) != len(view.keys)
    by_key = dict(zip([key for key, _ in view.sample] if of_items else view.keys, groups))
    seen = [(by_key.get(key), target_of(item)) for key, item in view.sample]
    targets = {str(target) for _, target in seen}
    return len(targets) >= OF_TARGETS * len({group for group, _ in seen})
