"""What a training run left in the current folder, for tests to look at."""

import json
from pathlib import Path

import torch

from engine import checkpoint as ckpt


def the_run():
    (folder,) = (path.parent for path in Path("runs").glob("*/status.json"))
    return folder


def status():
    return json.loads((the_run() / "status.json").read_text())


def metrics(kind=None):
    """The lines of metrics.jsonl without the times, which differ between any two runs."""
    lines = [json.loads(line) for line in (the_run() / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("time", "seconds")}
        for line in lines
        if kind in (None, line["kind"])
    ]


def same(left, right):
    """Whether two checkpoints are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def last(folder="."):
    return {key: v for key, v in torch.load(Path(folder) / ckpt.LAST, weights_only=True).items() if key != "run_id"}


def saved():
    """File name -> checkpoint, without the name of its run."""
    contents = {path.name: torch.load(path, weights_only=True) for path in ckpt.saved_files()}
    return {name: {key: v for key, v in content.items() if key != "run_id"} for name, content in contents.items()}
