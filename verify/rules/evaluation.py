"""EVL: how the model is evaluated, and what is made of it."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator

from verify.report import Finding, Status, plural
from verify.rules import Subject, rule
from verify.source import project_of
from verify.trace.record import Evaluation, NotSeenError, Record

EXACT = 2e-5
# A number as it is printed, with a fraction.
SHOWN = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")
# What an evaluation leaves in a variable that is divided only where it is reported.
SUMS = ("the sum of batch means", "the sum over samples")
PADDED = "the sum over the number of batches times the size of one, of which the last is smaller"
PRINTED = re.compile(r"(?:loss|nll)\b[^\d\n]{0,12}(\d+\.\d+)", re.IGNORECASE)
AVERAGING = ("mean", "average", "fmean", "median", "sum", "fsum", "stack", "tensor", "array", "as_tensor")
BATCH_VARIABLES = ("loss", "batch_loss", "l")
# An accuracy that is none of the usual numbers is worth a word when it is far off in several evaluations.
CLEARLY, UNKNOWN = 0.05, "which is not the share of samples whose largest logit is the target"
NUMBER = re.compile(r"[-+]?\d+\.\d+(?:[eE][-+]?\d+)?|[-+]?\d+")
LOSS_WORDS, ACCURACY_WORDS = ("loss", "nll", "ce"), ("acc", "correct", "top1", "prec")
EVAL_WORDS = ("val", "test", "eval", "dev")


def _evaluations(record: Record) -> list[Evaluation]:
    if not record.evaluations:
        raise NotSeenError("nothing was evaluated")
    return record.evaluations


@rule("EVL601", subject=Subject.RUN)
def eval_in_train_mode(record: Record) -> Iterator[Finding]:
    """The model is evaluated in train mode.

    Why it matters: dropout is on, batch norm uses the batch and learns from the validation data; the number depends on
    the batch size and changes from run to run.
    Found by: the `training` flag of the model and of its batch norms and dropouts at every forward pass over a loader
    that is never trained on.
    Not an error: a model without either; dropout alone switched on, as for Monte Carlo dropout; renewing batch norm
    statistics over the training data.

    Wrong: `with torch.no_grad(): evaluate(model)`
    Right: `model.eval()` first
    """
    evaluations = _evaluations(record)
    passes = [p for e in evaluations for p in e.passes]
    wrong = [p for p in passes if p["training"] and (p["norms"] > 0 or p["drops"] > 0)]
    if len(wrong) > len(passes) / 2:
        learned = any(p["learned"] for p in wrong)
        what = [word for word, key in (("batch norm", "norms"), ("dropout", "drops")) if wrong[0][key] > 0]
        modes = [e["loc"] for e in record.of("mode") if e["training"] and e["i"] < wrong[-1]["i"]]
        at = f"; train() was last called at {modes[-1]}" if modes else ""
        yield Finding(
            measured=f"train mode in {len(wrong)} of {len(passes)} evaluation passes",
            expected="eval mode",
            message=f"{' and '.join(what)} in train mode while evaluating"
            + (", and the running statistics learn from it" if learned else "")
            + at,
            location=wrong[0]["loc"],
            hint="model.eval() before the evaluation, model.train() after it",
        )
    elif any(e.passes and all(p in wrong for p in e.passes) for e in evaluations):
        bad = next(e for e in evaluations if e.passes and all(p in wrong for p in e.passes))
        count = sum(bool(e.passes) and all(p in wrong for p in e.passes) for e in evaluations)
        if count >= 2 or bad is evaluations[-1]:
            yield Finding(
                measured=f"train mode in {count} of {len(evaluations)} evaluations",
                expected="eval mode",
                message="one of the evaluations runs in train mode",
                location=bad.passes[0]["loc"],
                hint="model.eval() before each evaluation",
            )


@rule("EVL602", subject=Subject.RUN)
def eval_changes_model(record: Record) -> Iterator[Finding]:
    """Evaluating the model in eval mode changes its running statistics.

    Why it matters: the model learns from validation data, and its answers depend on what it was asked before.
    Found by: the statistics of batch norms before and after each forward pass of an evaluation in eval mode.
    Not an error: passes over the training data to renew the statistics.
    """
    passes = [p for e in _evaluations(record) for p in e.passes]
    learned = [p for p in passes if p["learned"] and not p["training"]]
    if len(learned) >= 2 and len(learned) > len(passes) / 2:
        yield Finding(
            measured=f"statistics changed in {len(learned)} of {len(passes)} evaluation passes",
            expected="0",
            message="batch norms learn from the evaluation data although the model is in eval mode",
            location=learned[0]["loc"],
            hint="a batch norm is put back into train mode: look for .train() on a part of the model",
        )


def _wrong_means(evaluation: Evaluation, whole: int | None) -> dict[str, float]:
    """What an evaluation's mean loss becomes by the usual mistakes: name to value."""
    losses = evaluation.batch_losses
    if not losses or len(losses) < 2:
        return {}
    values = [value for value, _ in losses]
    counts = [n for _, n in losses]
    total = sum(counts)
    wrong = {
        "the mean of batch means": sum(values) / len(values),
        "the sum of batch means": sum(values),
        "the sum of batch means over the number of samples": sum(values) / total,
        "the sum over samples": sum(v * n for v, n in losses),
        "the sum over samples over the number of batches": sum(v * n for v, n in losses) / len(losses),
        PADDED: sum(v * n for v, n in losses) / (len(losses) * max(n for _, n in losses)),
        "the loss of the last batch": values[-1],
        "the loss of the first batch": values[0],
    }
    if whole and whole != total:
        wrong["the sum of batch means over the size of the data set"] = sum(values) / whole
    return wrong


def _right_means(evaluation: Evaluation, whole: int | None) -> list[float]:
    losses = evaluation.batch_losses
    if not losses:
        return []
    total = sum(v * n for v, n in losses)
    count = sum(n for _, n in losses)
    return [total / count, *([total / whole] if whole else []), math.exp(min(total / count, 50))]


def _is_merged(record: Record, evaluation: Evaluation) -> bool:
    """Without a loader, one evaluation may follow another unseen: then it has more batches than the others."""
    without = [len(e.passes) for e in record.evaluations if e.loader is None]
    return evaluation.loader is None and len(evaluation.passes) > min(without)


def _parts_of(evaluation: Evaluation) -> list[float]:
    """The mean losses of all stretches of batches."""
    losses = evaluation.batch_losses or []
    stretches = [losses[a:b] for a in range(len(losses)) for b in range(a + 1, len(losses) + 1)][:5000]
    return [sum(v * n for v, n in part) / sum(n for _, n in part) for part in stretches]


def _is(value: float, other: float) -> bool:
    return abs(value - other) <= EXACT * max(abs(value), abs(other), 1e-9)


def _is_said(evaluation: Evaluation, values: list[float]) -> bool:
    """Whether the script prints one of the values after the evaluation, with three digits or more."""
    shown = [text for event in evaluation.said for text in SHOWN.findall(event["text"])]
    exact = [
        (float(text), len(text.partition(".")[2])) for text in shown if len(text.strip("0.").replace(".", "")) >= 3
    ]
    return any(abs(number - value) <= 0.5001 * 10**-digits for number, digits in exact for value in values)


def _printed_losses(evaluation: Evaluation) -> list[tuple[float, int]]:
    """(number, digits after the point) that the script prints as a loss after the evaluation, with four digits."""
    found = []
    for event in evaluation.said:
        for match in PRINTED.finditer(event["text"]):
            number = match[1]
            before = event["text"][max(0, match.start() - 25) : match.start()].lower()
            if "train" not in before and len(number.replace(".", "").lstrip("0")) >= 4:
                found.append((float(number), len(number.partition(".")[2])))
    return found


def _is_meant(evaluation: Evaluation, name: str, value: float) -> bool:
    """Whether a variable is what the script reports: `loss` alone is any batch's, unless it is printed afterwards."""
    plain = name.rpartition(".")[2] in BATCH_VARIABLES
    return not plain or _is_said(evaluation, [value])


def _named(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for word in words)


def _reported_losses(evaluation: Evaluation) -> dict[str, float]:
    """Variables that hold the loss of an evaluation, by name: if it is the only one, those that speak of validation."""
    named = {k: v for k, v in evaluation.values.items() if _named(k, LOSS_WORDS) and not _named(k, ("train", "best"))}
    special = {k: v for k, v in named.items() if _named(k, EVAL_WORDS) or "vl" in k.lower()}
    return special if special and not evaluation.beside else named


def _last_word(name: str) -> str:
    return name.rpartition(".")[2]


def _divided_names(record: Record) -> set[str]:
    """Variables and attributes that the script divides somewhere, as a running sum of which a mean is reported, and
    those that it only adds to and reports nowhere.
    """
    found: set[str] = set()
    if not record.sources:
        return found
    project = project_of(record)
    divisions = [node.left for node in project.nodes(ast.BinOp) if isinstance(node.op, ast.Div)]
    in_place = [node.target for node in project.nodes(ast.AugAssign) if isinstance(node.op, ast.Div)]
    for node in [inner for left in [*divisions, *in_place] for inner in ast.walk(left)]:
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    added = {node.target.id for node in project.nodes(ast.AugAssign) if isinstance(node.target, ast.Name)}
    read = {node.id for node in project.nodes(ast.Name) if isinstance(node.ctx, ast.Load)}
    return found | (added - read)


def _averaged_lists(record: Record) -> set[str]:
    """What the recorder calls the last item of a list that the script averages: the loss of a batch, no report."""
    if not record.sources:
        return set()
    calls = [c for c in project_of(record).calls if c.args and _last_word(ast.unparse(c.func)) in AVERAGING]
    return {f"{ast.unparse(call.args[0])}[-1]" for call in calls}


def _whole(record: Record, evaluation: Evaluation) -> int | None:
    if evaluation.loader is None:
        return None
    size = record.loaders[evaluation.loader].get("n")
    return int(size) if size else None


def _loss_mistakes(record: Record) -> dict[str, tuple[str, float, float, Evaluation]]:
    """Mistake -> (variable, its value, the right value, evaluation), for mistakes seen in most evaluations."""
    seen: dict[str, list[tuple[str, float, float, Evaluation]]] = {}
    judged = 0
    excused, items = _divided_names(record), _averaged_lists(record)
    for evaluation in record.evaluations:
        whole = _whole(record, evaluation)
        right = _right_means(evaluation, whole)
        reported = {k: v for k, v in _reported_losses(evaluation).items() if k not in items}
        printed = _printed_losses(evaluation)
        if not right or not (reported or printed):
            continue
        judged += 1
        if _is_merged(record, evaluation):
            right += _parts_of(evaluation)
        if any(_is(value, one) for value in reported.values() for one in right) or _is_said(evaluation, right):
            continue
        for what, wrong in _wrong_means(evaluation, whole).items():
            if any(abs(wrong - one) <= 1e-4 * abs(one) for one in right):
                continue
            named = {k: v for k, v in reported.items() if not (what in SUMS and _last_word(k) in excused)}
            match = next((k for k, v in named.items() if _is(v, wrong) and _is_meant(evaluation, k, v)), None)
            shown = next((n for n, digits in printed if abs(n - wrong) <= 0.5001 * 10**-digits), None)
            if match or shown is not None:
                value = reported[match] if match else float(shown or 0)
                seen.setdefault(what, []).append((match or "the printed loss", value, right[0], evaluation))
                break
    return {what: found[0] for what, found in seen.items() if len(found) >= max(1, judged / 2)}


@rule("EVL603", severity=Status.WARN, subject=Subject.RUN)
def mean_of_batch_means(record: Record) -> Iterator[Finding]:
    """The validation loss is a mean of batch means.

    Why it matters: the last, smaller batch weighs as much as a full one, so the number depends on the batch size, and a
    model may be chosen by it.
    Found by: the script's own variable, which equals the mean of batch means and not the mean over samples.
    Not an error: batches of equal size, for which both are the same.

    Wrong: `total += loss.item()` and `total / len(loader)`
    Right: `total += loss.item() * len(y)` and `total / len(loader.dataset)`
    """
    _evaluations(record)
    found = _loss_mistakes(record).get("the mean of batch means")
    if found:
        name, value, right, evaluation = found
        sizes = [n for _, n in evaluation.batch_losses or []]
        yield Finding(
            measured=f"{name} = {value:.5g}",
            expected=f"{right:.5g}, the mean over samples",
            message=f"the last batch of {sizes[-1]} weighs as much as one of {sizes[0]}",
            location=evaluation.passes[0]["loc"],
            hint="weigh each batch by its size, and divide by the number of samples",
        )


@rule("EVL604", subject=Subject.RUN)
def metric_wrong(record: Record) -> Iterator[Finding]:
    """A reported loss or accuracy is not that of the evaluation.

    Why it matters: models are chosen, and results are published, by this number.
    Found by: loss and accuracy recomputed from the logits and targets of every batch, compared with the script's own
    variables and output; a finding needs a variable that equals a usual mistake exactly.
    Not an error: fractions and percentages, other metrics, smoothed losses.

    Wrong: `total / len(loader.dataset)` of batch means; `correct = ...` instead of `correct += ...`;
    `correct / (len(loader) * batch_size)`
    Right: sums over samples, divided by the number of samples
    """
    _evaluations(record)
    for what, (name, value, right, evaluation) in _loss_mistakes(record).items():
        if what == "the mean of batch means":
            continue
        yield Finding(
            status=Status.WARN if what == "the sum of batch means" else Status.FAIL,
            measured=f"{name} = {value:.5g}, {what}",
            expected=f"{right:.5g}, the mean over samples",
            message="the reported loss is not the mean loss of the evaluation",
            location=evaluation.passes[0]["loc"],
            hint="sum loss.item() * len(y) over all batches, and divide by the number of samples",
        )
    yield from _accuracy_mistakes(record)


def _accuracy_mistakes(record: Record) -> Iterator[Finding]:
    seen: dict[str, list[tuple[str, float, float, Evaluation]]] = {}
    judged = 0
    single = _one_at_a_time(record)
    for evaluation in record.evaluations:
        accuracy = evaluation.accuracy
        reported = {
            k: v
            for k, v in evaluation.values.items()
            if _named(k, ACCURACY_WORDS) and not _named(k, ("train", "best", "top5", "prec5", "acc5"))
        }
        special = {k: v for k, v in reported.items() if _named(k, EVAL_WORDS) or "va" in k.lower()}
        reported = special if special and single else reported
        if accuracy is None or not reported or len(evaluation.passes) < 2:
            continue
        judged += 1
        whole = _whole(record, evaluation)
        correct = sum(p["correct"] for p in evaluation.passes)
        right = [accuracy, 100 * accuracy, float(correct), 1 - accuracy, 100 * (1 - accuracy)]
        right += [correct / whole, 100 * correct / whole] if whole else []
        if _is_merged(record, evaluation):
            passes = evaluation.passes
            parts = [passes[a:b] for a in range(len(passes)) for b in range(a + 1, len(passes) + 1)][:5000]
            shares = [sum(p["correct"] for p in part) / sum(p["n"] for p in part) for part in parts]
            right += [scale * value for value in shares for scale in (1, 100)]
        if any(_is(value, one) for value in reported.values() for one in right) or _is_said(evaluation, right):
            continue
        match = _match_accuracy(evaluation, reported, right, whole)
        if match:
            seen.setdefault(match[0], []).append((match[1], match[2], accuracy, evaluation))
        elif special and single and evaluation.loader is not None and _is_plain(evaluation):
            name = min(special)
            shown = special[name] / 100 if special[name] > 1 else special[name]
            if abs(shown - accuracy) > CLEARLY and len(special) == 1:
                seen.setdefault(UNKNOWN, []).append((name, special[name], accuracy, evaluation))
    for what, found in seen.items():
        if len(found) >= max(1, judged / 2) and (what != UNKNOWN or len(found) >= 3):
            name, value, accuracy, evaluation = found[0]
            yield Finding(
                status=Status.WARN if what in ("the mean of batch accuracies", UNKNOWN) else Status.FAIL,
                measured=f"{name} = {value:.5g}, {what}",
                expected=f"{accuracy:.5g}, the share of samples that are right",
                message="the reported accuracy is not that of the evaluation",
                location=evaluation.passes[0]["loc"],
                hint="count the right ones over all batches, and divide by the number of samples",
            )


def _one_at_a_time(record: Record) -> bool:
    """Whether one model is evaluated on one loader after each epoch, but for the last."""
    kinds = [(e.passes[0]["model"], e.loader) for e in record.evaluations]
    return len(set(kinds[:-1])) <= 1


def _is_plain(evaluation: Evaluation) -> bool:
    """One pass of one model for each batch: no averages over views, models or chance."""
    passes = evaluation.passes
    return len({p["model"] for p in passes}) == 1 and all(p["drops"] <= 0 for p in passes)


def _match_accuracy(
    evaluation: Evaluation, reported: dict[str, float], right: list[float], whole: int | None
) -> tuple[str, str, float] | None:
    passes = evaluation.passes
    shares = [p["correct"] / p["n"] for p in passes]
    correct, total = sum(p["correct"] for p in passes), evaluation.samples
    wrong = {
        "the mean of batch accuracies": sum(shares) / len(shares),
        "the last batch over all samples": passes[-1]["correct"] / total,
        "the accuracy of the last batch": shares[-1],
        "right answers over the number of batches": correct / len(passes),
        PADDED: correct / (len(passes) * max(p["n"] for p in passes)),
        "the sum of batch accuracies": sum(shares),
        "the sum of batch accuracies over the number of samples": sum(shares) / total,
    }
    if whole and whole != total:
        wrong["the last batch over the size of the data set"] = passes[-1]["correct"] / whole
    for k in ("2", "3", "5"):
        if all(k in p.get("top", {}) for p in passes):
            wrong[f"the accuracy of the best {k} answers"] = sum(p["top"][k] for p in passes) / total
    for what, value in wrong.items():
        for scale in (1, 100):
            if value and not any(abs(scale * value - one) <= 1e-3 * abs(one) for one in right):
                match = next((k for k, v in reported.items() if _is(v, scale * value)), None)
                if match:
                    return what, match, reported[match]
    return None


@rule("EVL605", severity=Status.WARN, subject=Subject.RUN)
def eval_incomplete(record: Record) -> Iterator[Finding]:
    """Evaluations stop before the last batch.

    Why it matters: the number is that of the first samples only, which may be a few classes of a sorted set.
    Found by: passes over an evaluation loader that end while there are batches left, in every evaluation.
    Not an error: a look at one batch beside whole evaluations of the same loader.
    """
    _evaluations(record)
    for loader in record.loaders:
        passes = [one for one in record.iterations if one.loader == loader and one.role == "eval"]
        if not passes or loader in record.train_loaders or any(one.exhausted for one in passes):
            continue
        short = [one for one in passes if one.counts["batches"] < min(one.limit, one.length or one.limit)]
        if len(short) == len(passes) and record.ran_to_the_end and short[0].counts["batches"] >= 1:
            yield Finding(
                measured=f"{plural(short[0].counts['batches'], 'batch').replace('batchs', 'batches')} "
                f"of {short[0].length or 'all'} in each of {len(short)} evaluations",
                expected="all",
                message="the loop over the evaluation loader is left early every time",
                location=short[0].loc,
                hint="a break from debugging?",
            )


@rule("EVL607", severity=Status.NOTE, subject=Subject.RUN)
def eval_builds_graph(record: Record) -> Iterator[Finding]:
    """Evaluations compute what a backward pass would need.

    Why it matters: they take about twice the memory, and more time.
    Found by: forward passes of an evaluation with gradients enabled.
    Not an error: attributions and attacks, which need gradients.
    """
    passes = [p for e in _evaluations(record) for p in e.passes]
    with_graph = [p for p in passes if p["grad"]]
    if len(with_graph) > len(passes) / 2:
        yield Finding(
            measured=f"gradients enabled in {len(with_graph)} of {len(passes)} evaluation passes",
            expected="torch.no_grad() or inference_mode()",
            message="the evaluation builds a graph that nobody uses",
            location=with_graph[0]["loc"],
            hint="with torch.inference_mode():",
        )


@rule("EVL609", severity=Status.NOTE, subject=Subject.RUN)
def no_validation(record: Record) -> Iterator[Finding]:
    """Nothing is evaluated while training.

    Why it matters: neither overfitting nor a broken model would be noticed.
    Found by: no forward pass that is not trained on, in a run of two epochs or more.
    Not an error: an evaluation by another script.
    """
    record.need_training()
    if len(record.epochs) >= 2 and not record.evaluations:
        yield Finding(
            measured="0 evaluations",
            expected="one an epoch",
            message="the run never looks at data that it does not train on",
            hint="keep a part of the data for validation, and evaluate it each epoch",
        )


@rule("EVL610", subject=Subject.RUN)
def best_of_wrong_direction(record: Record) -> Iterator[Finding]:
    """The best checkpoint is the worst.

    Why it matters: what is evaluated and served later is the worst model of the run.
    Found by: after which evaluations a file with "best" in its name is saved, or one by Lightning's ModelCheckpoint
    with a monitor, compared with records of accuracy and loss in either direction.
    Not an error: ties, and metrics that are neither.

    Wrong: `if val_loss > best: save()`
    Right: `if val_loss < best: save()`
    """
    evaluations = [e for e in _evaluations(record) if e.loss is not None or e.accuracy is not None]
    by_model: dict[tuple[int, int | None], list[Evaluation]] = {}
    for evaluation in evaluations:
        by_model.setdefault((evaluation.passes[0]["model"], evaluation.loader), []).append(evaluation)
    series = [found for found in by_model.values() if len(found) >= 4]
    if not series:
        raise NotSeenError("fewer than four evaluations with a loss or an accuracy were seen")
    saves = [s for s in record.of("save") if ("best" in s["path"].lower() or s.get("best")) and not s["fast"]]
    for found in series:
        if saves and len(series) == 1:
            yield from _wrong_saves(found, [s["i"] for s in saves], saves[0]["loc"])
        yield from _wrong_variable(found)


def _wrong_saves(evaluations: list[Evaluation], saves: list[int], place: str) -> Iterator[Finding]:
    bounds = [*[e.end for e in evaluations], math.inf]
    saved = [any(bounds[n] < i <= bounds[n + 1] for i in saves) for n in range(len(evaluations))]
    losses, accuracies = [e.loss for e in evaluations], [e.accuracy for e in evaluations]
    if evaluations[0].after < 0 and not saved[0]:  # a look before training, as Lightning's sanity check
        evaluations, saved = evaluations[1:], saved[1:]
        losses, accuracies = losses[1:], accuracies[1:]
    right = [_records(losses, lower=True), _records(accuracies, lower=False)]
    wrong = [_records(losses, lower=False), _records(accuracies, lower=True)]
    later = saved[1:]
    known = [r for r in right if r is not None]
    if not known or any(r[1:] == later for r in known) or any(sum(r[1:]) < 3 for r in known):
        return
    if any(w is not None and w[1:] == later for w in wrong):
        which = ", ".join(str(n + 1) for n, s in enumerate(saved) if s)
        yield Finding(
            measured=f"saved after evaluations {which or 'none'} of {len(saved)}",
            expected="saved when the metric gets better",
            message="the comparison that chooses the best checkpoint is the wrong way round",
            location=place,
            hint="a loss is better when it is lower, an accuracy when it is higher",
        )


def _wrong_variable(evaluations: list[Evaluation]) -> Iterator[Finding]:
    """A variable called best that follows the worst value so far."""
    names = {k for e in evaluations for k in e.values if "best" in k.lower()}
    for name in sorted(names):
        held = [e.values.get(name) for e in evaluations]
        for values, lower in (([e.loss for e in evaluations], True), ([e.accuracy for e in evaluations], False)):
            improved = _records(values, lower)
            if improved is None or sum(improved) < 4:
                continue
            if _follows(held, values, lower) or not _follows(held, values, not lower):
                continue
            word = "highest loss" if lower else "lowest accuracy"
            yield Finding(
                measured=f"{name} holds the {word} so far",
                expected="the lowest loss" if lower else "the highest accuracy",
                message="the comparison that chooses the best model is the wrong way round",
                location=evaluations[-1].values_loc or evaluations[-1].passes[0]["loc"],
                hint="a loss is better when it is lower, an accuracy when it is higher",
            )
            return


def _follows(held: list[float | None], values: list[float | None], lower: bool) -> bool:
    """Whether a variable is the best value up to this evaluation, or up to the one before."""
    if any(value is None for value in values):
        return False
    choose = min if lower else max
    best = [choose(v for v in values[: n + 1] if v is not None) for n in range(len(values))]

    def fits(expected: list[float], seen: list[float | None]) -> bool:
        pairs = [(a, b) for a, b in zip(expected, seen, strict=False) if b is not None]
        return len(pairs) >= 3 and all(any(_is(b, scale * a) for scale in (1, 100)) for a, b in pairs)

    return fits(best, held) or fits(best, held[1:])


def _records(values: list[float | None], lower: bool) -> list[bool] | None:
    """Which values are the best so far."""
    if any(value is None for value in values):
        return None
    best, found = math.inf, []
    for value in values:
        signed = (value or 0.0) if lower else -(value or 0.0)
        found.append(signed < best)
        best = min(best, signed)
    return found
