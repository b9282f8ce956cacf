"""DAT: whether an evaluation has samples of its own, and all of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verify.report import Finding, Status, plural
from verify.rules import Subject, rule
from verify.rules.data_code import flat_targets, last_name
from verify.rules.data_probe import (
    CONTAINED,
    Json,
    data_probe,
    measured_evals,
    overlaps_of,
    place_of,
    sees_training_data,
)
from verify.trace.child.names import role, role_of_all
from verify.trace.record import NotSeenError, Record

# Shares of an evaluation split that training sees too. CIFAR and Fashion-MNIST themselves have about 0.03%.
OVERLAP_FAIL = 0.005
OVERLAP_SILENT = 0.001


@rule("DAT207", subject=Subject.RUN)
def splits_overlap(record: Record) -> Iterator[Finding]:
    """An evaluation split holds samples that training sees.

    Why it matters: the score is that of memory, and the best checkpoint the one that memorised most.
    Found by: indices of views of one dataset; else the raw rows, files or items of both splits, by hash; of rows that
    one split stores with a border, the middle. Without a DataLoader: the rows of the tensors that batches are cut from,
    and of those that are called validation or test.
    Not an error: the accuracy on training data next to a real validation, unless the split is called validation or
    test; a fold that training leaves out by index; a few duplicates, which CIFAR and Fashion-MNIST have themselves;
    samples that occur twice within a split too, such as blank pictures.

    Wrong: `val_index = order[:5000]; train_index = order[2500:]`; `CIFAR10(root, train=True)` as test set
    Right: `train_index, val_index = order[:45000], order[45000:]`
    References: facenet issue 641, hydra issue 4; fashion-mnist issue 44 on duplicates that are published.
    """
    probe = data_probe(record)
    judged = measured_evals(probe, overlaps_of(probe))
    clean = any(made["share"] < OVERLAP_FAIL for _, made in judged)
    others = _evaluated_later(record, probe) or len(judged) < sum(view["evaluated"] for view in probe["evals"])
    for view, made in judged:
        held_out = _held_out(record, view)
        if made["share"] >= CONTAINED and clean and not held_out:
            continue
        status = _overlap_status(made, others and not held_out)
        if status is None:
            continue
        share = f"{made['share']:.1%}" if made["share"] < 1 else "all"
        yield Finding(
            status=status,
            measured=f"{share} of {made['n']:,} evaluation samples are in the training data (by {made['method']})",
            expected="0",
            message="the only evaluation runs over the training loader"
            if made["method"] == "same loader"
            else "training and evaluation share samples",
            location=place_of(view),
            hint="split the indices once, without overlap, before either dataset is made",
        )
        return
    yield Finding(status=Status.PASS, measured=f"{plural(len(judged), 'evaluation split')} compared")


def _held_out(record: Record, view: Json) -> bool:
    """Whether the script calls a split validation or test, by what holds its loader or by the line that makes it."""
    names = [name for name in view.get("names") or [] if not name.rpartition(".")[2].isdigit()]  # no item of a list
    if any(role(name) for name in names):
        return role_of_all(names) == "eval"
    return role_of_all(_names_in_source(record, str(view.get("loc") or ""))) == "eval"


def _names_in_source(record: Record, loc: str) -> list[str]:
    """Names that the statement at a place assigns to, keys that it fills, or the function that returns from there."""
    path, _, number = loc.rpartition(":")
    text = next((text for name, text in record.sources.items() if name == path or name.endswith("/" + path)), None)
    if text is None or not number.isdigit():
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    line = int(number)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Assign, ast.Return)) or not node.lineno <= line <= (node.end_lineno or 0):
            continue
        if isinstance(node, ast.Assign):
            return _assigned_at(node, line)
        functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and node in ast.walk(f)]
        return [function.name for function in functions[-1:]] if isinstance(node.value, ast.Call) else []
    return []


def _assigned_at(node: ast.Assign, line: int) -> list[str]:
    targets = flat_targets(node.targets[0])
    value = node.value
    if isinstance(value, ast.Tuple) and len(value.elts) == len(targets):
        at = [t for t, made in zip(targets, value.elts, strict=True) if made.lineno <= line <= (made.end_lineno or 0)]
        return [last_name(t) for t in at] if len(at) == 1 else []
    if isinstance(value, ast.Dict):
        pairs = zip(value.keys, value.values, strict=True)
        at_keys = [key for key, made in pairs if made.lineno <= line <= (made.end_lineno or 0)]
        return [str(key.value) for key in at_keys if isinstance(key, ast.Constant)] if len(at_keys) == 1 else []
    if len(targets) != 1:
        return []
    target = targets[0]
    key = target.slice if isinstance(target, ast.Subscript) else None
    return [str(key.value)] if isinstance(key, ast.Constant) else [last_name(target)]


def _evaluated_later(record: Record, probe: Json) -> bool:
    """Whether the run evaluates loaders that had not been used when the probe was made."""
    known = {view["id"] for view in probe["evals"]}
    if None in known:
        return False
    passes = [event["loader"] for event in record.of("iter_end") if event.get("forwards") and not event.get("steps")]
    phases = [event.get("loader") for event in record.of("phase") if event.get("phase") not in ("train", None)]
    return any(loader not in known and loader != probe["train"].get("id") for loader in [*passes, *phases])


def _overlap_status(made: Json, others: bool) -> Status | None:
    share, common = made["share"], made["common"]
    if made["method"] == "same loader":
        return None if others else Status.WARN
    if share < OVERLAP_SILENT or (made["method"] != "index" and common < 3):
        return None
    if share < OVERLAP_FAIL or (share >= CONTAINED and others):
        return Status.WARN
    if made["method"] == "index":
        return Status.FAIL
    told_apart = made.get("unique_train", 1.0) >= 0.5 and made["unique"] >= 0.5 * min(made["n"], 256)
    if made["method"] == "batches" or common < 5 or not told_apart:
        return Status.WARN if told_apart else None
    return Status.FAIL


@rule("DAT216", subject=Subject.RUN)
def eval_samples_dropped(record: Record) -> Iterator[Finding]:
    """The evaluation loader drops its last batch.

    Why it matters: the score leaves out samples, other ones for each batch size; published results were wrong by this.
    Found by: `drop_last=True` on a loader that is evaluated and whose samples are not a multiple of the batch size. For
    batches that are cut by hand: every evaluation ends with the last whole batch of a split that is larger.
    Not an error: `drop_last=True` in training.

    Wrong: `DataLoader(val, batch_size=128, drop_last=True)`
    Right: `DataLoader(val, batch_size=128)`
    References: PatchTST issue 7, Autoformer issue 104.
    """
    probe = data_probe(record)
    if not probe.get("evals"):
        raise NotSeenError(probe.get("skipped") or "no evaluation was seen")
    yield from _tail_left_out(record, probe)
    own = sees_training_data(probe) if len(probe["evals"]) > 1 else set()
    for index, view in enumerate(probe["evals"]):
        size, batch = view["n"], view["batch_size"]
        dropped = size % batch if view["drop_last"] and size and batch else 0
        if index in own or view["is_train_loader"] or not view["evaluated"] or not dropped:
            continue
        yield Finding(
            measured=f"{plural(dropped, 'sample')} of {size:,} never evaluated",
            expected="0",
            message=f"drop_last=True with a batch size of {batch}",
            location=place_of(view),
            hint="drop_last=False for evaluation",
        )
        return


def _tail_left_out(record: Record, probe: Json) -> Iterator[Finding]:
    """Evaluations of hand-cut batches, all of one size, that see all but the rest of a held split."""
    sizes = {view["n"]: view for view in probe["evals"] if view.get("hand_cut") and view["n"]}
    evaluations = [one for one in record.evaluations if one.loader is None and len(one.passes) >= 2]
    for size, view in sizes.items():
        ended = [one for one in evaluations if _is_cut(one.passes, size)]
        if len(ended) >= 2 and not any(one.samples in sizes for one in evaluations):
            yield Finding(
                measured=f"{plural(size - ended[0].samples, 'sample')} of {size:,} never evaluated",
                expected="0",
                message=f"the loop over batches of {ended[0].passes[0]['n']} ends with the last whole one",
                location=str(ended[0].passes[0].get("loc") or place_of(view)),
                hint="for start in range(0, n, batch): the last slice may be shorter",
            )
            return


def _is_cut(passes: list[Json], size: int) -> bool:
    batch = {event["n"] for event in passes}
    width = next(iter(batch))
    return len(batch) == 1 and width > 0 and size % width > 0 and sum(e["n"] for e in passes) == size - size % width
