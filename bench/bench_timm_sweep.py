"""Every model that timm can build with random weights, through the counts and shapes of `kit verify`: no false alarm.

Of each model: its number of parameters as the verifier counts it, against a plain sum over its tensors and against the
table that timm publishes, if it is given (results/results-imagenet.csv of its repository; the package has none); the
shapes of its logits at several batches; and
whether the loss reaches every parameter, from the graph that autograd builds on the meta device. Nothing is computed.

    python bench/bench_timm_sweep.py [--table FILE] [--sample N] [--results FILE] [--filter PATTERN]

A line a model goes to the file; models that are in it already are left out, so a sweep may be stopped and started
again. `--sample 40` takes every n-th model. Exit code 1 when any model raised an alarm.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from verify.outputs import main_logits
from verify.probe import ModelProbe
from verify.rules import SHAPE_RULES, rules_named
from verify.shapes import plain_sizes
from verify.spec import Spec
from verify.targets import resolve
from verify.worker import apply

# The published table gives millions with two digits behind the point.
PUBLISHED_SLACK = 0.006e6
IMAGENET_CLASSES = 1000
RULES = [["verify.rules.model", code] for code in SHAPE_RULES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--sample", type=int, default=0, help="this many models, evenly spread")
    parser.add_argument("--results", type=Path, default=Path("timm_sweep.jsonl"))
    parser.add_argument("--table", type=Path, help="timm's published results, a CSV file")
    parser.add_argument("--filter", default="", help="a pattern of names, such as 'vit_*'")
    arguments = parser.parse_args()
    if arguments.table and not arguments.table.is_file():
        parser.error(f"--table {arguments.table} does not exist; timm's repository has results/results-imagenet.csv")
    names = timm.list_models(arguments.filter or "*")
    if arguments.sample:
        names = names[:: max(1, len(names) // arguments.sample)][: arguments.sample]
    done = _done(arguments.results)
    published = published_counts(arguments.table) if arguments.table else {}
    with arguments.results.open("a") as file:
        for name in names:
            if name not in done:
                done[name] = result = examine(name)
                file.write(json.dumps(result) + "\n")
                file.flush()
    _report([done[name] for name in names], published)


def _done(file: Path) -> dict[str, dict[str, Any]]:
    if not file.exists():
        return {}
    return {result["model"]: result for result in map(json.loads, file.read_text().splitlines())}


def published_counts(table: Path) -> dict[str, set[float]]:
    """Parameters by model; sets of weights of one model may have different heads."""
    counts: dict[str, set[float]] = defaultdict(set)
    with table.open() as file:
        for row in csv.DictReader(file):
            counts[row["model"].partition(".")[0]].add(1e6 * float(row["param_count"].replace(",", "")))
    return counts


def examine(name: str) -> dict[str, Any]:
    """What the rules about shapes and counts say, and which parameters the graph does not reach."""
    started = time.process_time()
    target = resolve(f"timm:{name}", {}, None, Path.cwd())
    probe = ModelProbe(target, Spec(model=target.name), torch.device("cpu"))
    result: dict[str, Any] = {"model": name, "alarms": [], "meta": probe.meta_model is not None}
    if probe.meta_model is None:
        return {**result, "seconds": round(time.process_time() - started, 2)}
    probe.shapes_only = True
    checks = [check for rule in rules_named(RULES) for check in apply(rule, probe, {})]
    result["alarms"] = [f"{c.code} {c.message} {c.measured}" for c in checks if c.status in ("fail", "error", "warn")]
    counted = probe.parameter_counts[0]
    expected = sum(p.numel() for p in probe.meta_model.parameters())
    if counted != expected:
        result["alarms"].append(f"{counted:,} parameters instead of {expected:,.0f}")
    try:
        result["unreached"] = unreached(probe.meta_model, probe.input_size)
    except Exception as error:  # a train mode that needs numbers
        result["graph"] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return {**result, "parameters": counted, "seconds": round(time.process_time() - started, 2)}


def unreached(model: nn.Module, size: tuple[int, ...]) -> list[str]:
    """Names of trainable parameters that are no leaf of the graph behind the logits, in train mode."""
    with torch.enable_grad(), plain_sizes():
        logits = main_logits(model.train()(torch.empty(2, *size, device="meta")))
    reached = {id(leaf) for leaf in _leaves(logits)}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in reached]


def _leaves(logits: Tensor) -> Iterator[Tensor]:
    waiting, seen = [logits.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [parent for parent, _ in node.next_functions]


def _is_one_of(count: int, published: set[float]) -> bool:
    return any(abs(count - number) <= PUBLISHED_SLACK for number in published)


def _count(name: str, classes: int) -> int:
    """Parameters of a model that by default has another number of classes than the published one."""
    target = resolve(f"timm:{name}", {}, classes, Path.cwd())
    return ModelProbe(target, Spec(model=target.name), torch.device("cpu")).parameter_counts[0]


def _report(results: list[dict[str, Any]], published: dict[str, set[float]]) -> None:
    listed = [result for result in results if published.get(result["model"])]
    for result in listed:
        name, counts = result["model"], published[result["model"]]
        if not _is_one_of(result["parameters"], counts) and not _is_one_of(_count(name, IMAGENET_CLASSES), counts):
            result["alarms"].append(f"{result['parameters']:,} parameters, published {sorted(counts)}")
    alarms = [result for result in results if result["alarms"]]
    cut = [result for result in results if result.get("unreached")]
    unseen = [result for result in results if not result["meta"] or "graph" in result]
    for result in [*alarms, *cut, *unseen]:
        what = result["alarms"] or result.get("unreached") or result.get("graph") or "is not built on the meta device"
        print(f"{result['model']}: {str(what)[:160]}")
    against = f"a plain sum, and timm's table for {len(listed):,} of them" if published else "a plain sum"
    seconds = sum(result["seconds"] for result in results)
    print(f"{len(results)} models, counts against {against}: {len(alarms)} alarms; {len(cut)} with parameters that the")
    print(f"graph does not reach; {len(unseen)} not followed on the meta device; {seconds:.0f} s of CPU time")
    sys.exit(bool(alarms))


if __name__ == "__main__":
    main()
