"""LOS, MOD: models of sequences of tokens: targets that the model can read, and padding that counts."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from typing import Any

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Project, project_of
from verify.trace.record import Evaluation, NotSeenError, Record

PAD = re.compile(r"pad", re.IGNORECASE)
LEAST_SHARE = 0.02  # of the targets that are padding
LEAST_DIFFERENCE = 1e-3  # of the spread of the outputs
REPORTED = re.compile(r"(?<![a-z])(loss|nll|ppl|perplexity|ce|bpc|bpb|xent)(?![a-z])", re.IGNORECASE)
EXACT = 1e-5
LEAST_IGNORED = 0.01  # of the targets
MASKS = ("key_padding_mask", "src_key_padding_mask", "tgt_key_padding_mask", "memory_key_padding_mask")


def _measured(record: Record, name: str) -> dict[str, Any]:
    probe = record.probe("tokens")
    part = probe if "skipped" in probe else probe[name]
    if "skipped" in part:
        raise NotSeenError(part["skipped"])
    return {**part, "kinds": probe["kinds"]}


@rule("LOS931", severity=Status.WARN, subject=Subject.RUN)
def target_in_the_input(record: Record) -> Iterator[Finding]:
    """A model of sequences reads the very token that it is to predict.

    Why it matters: the loss falls to almost nothing, and what is generated is useless: the answer is in the input of
    training and validation, and not there when the model writes by itself. Either the targets are not shifted by one,
    or attention has no causal mask.
    Found by: exchanging single tokens of the last batch, in a copy of the run, in eval mode: the scores at a place
    depend on the token that is their target, in each input that holds the targets and that the scores depend on.
    Not an error: masked tokens; a source that is to be copied beside a decoder that sees only what came before; models
    that make one vector of a sequence, as autoencoders do; recurrent ones that read the targets whole.

    Wrong: `logits = model(tokens); loss = cross_entropy(logits, tokens)`; attention without `is_causal=True`
    Right: `logits = model(tokens[:, :-1]); loss = cross_entropy(logits, tokens[:, 1:])`, with a causal mask
    """
    seen = _measured(record, "leak")
    inputs = seen["inputs"]
    if seen["narrow"] or not inputs or not all(one["leaks"] for one in inputs):
        return
    shifted = all(one["shift"] == 1 for one in inputs)
    if shifted and "recurrent" in seen["kinds"]:
        return
    yield Finding(
        measured=f"the scores at a place depend on the token {'after it' if shifted else 'there'}, which is the target",
        expected="scores that depend on earlier tokens alone",
        message="the model reads the tokens that it is to predict"
        + ("" if shifted else ": the targets are the input, not shifted"),
        hint="mask later tokens in the attention, is_causal=True"
        if shifted
        else "inputs tokens[:, :-1], targets [:, 1:]",
    )


@rule("LOS932", severity=Status.WARN, subject=Subject.RUN)
def padding_in_the_loss(record: Record) -> Iterator[Finding]:
    """Padding counts in the loss as if it were text.

    Why it matters: predicting padding after padding is easy; the loss looks low, most gradients go to it in batches of
    short sequences, and the mean depends on how long the longest one is.
    Found by: the targets of the last batch that was trained on: those at the ends of sequences are the `padding_idx` of
    an embedding, and the cross entropy neither ignores that number nor gives it the weight 0.
    Not an error: losses of single tokens that are masked afterwards (`reduction="none"`); padding that was marked -100.

    Wrong: `cross_entropy(logits, targets)` with padded targets
    Right: `cross_entropy(logits, targets, ignore_index=PAD)`
    """
    seen = _measured(record, "padded_targets")
    if seen["padding"] >= LEAST_SHARE * seen["counted"] and seen["rows"] >= 2:
        yield Finding(
            measured=f"{seen['padding']} of {seen['counted']} targets are padding ({seen['number']})",
            expected=f"ignore_index={seen['number']}",
            message="the loss counts padding as if it were text",
            hint=f"give the cross entropy ignore_index={seen['number']}",
        )


@rule("MOD151", severity=Status.WARN, subject=Subject.RUN)
def padding_changes_output(record: Record) -> Iterator[Finding]:
    """Padding changes what the model computes, although it masks padding somewhere.

    Why it matters: what comes out for a sequence depends on how long the others in its batch are: validation, which
    has other batches, and single sequences get other results than training.
    Found by: one sequence of the last batch with its padding and without, in a copy of the run, in eval mode; only in
    models whose own code masks padding, so that it was meant not to count.
    Not an error: convolutions and recurrent layers, which see the edge; models that mask nothing.

    Wrong: a mask in the encoder's attention, and none in the attention of the decoder to the encoder, or in the mean
    Right: the same mask wherever positions of the padded sequence are attended to or averaged
    """
    seen = _measured(record, "padding")
    project = project_of(record)
    mask = next(_masks(project), None)
    if seen["kinds"] or mask is None or seen["difference"] < LEAST_DIFFERENCE:
        return
    yield Finding(
        measured=f"{seen['difference']:.2g} of the spread of the outputs, for {seen['cut']} of {seen['of']} tokens",
        expected="no difference",
        message=f"padding changes the output, although `{ast.unparse(mask)[:60]}` masks it somewhere",
        location=project.at(mask),
        hint="use the mask in every attention and every mean over the padded sequence",
    )


def _masks(project: Project) -> Iterator[ast.AST]:
    """Where the code of a module compares with a padding number, or hands a mask of padding on."""
    for node in project.nodes(ast.Compare):
        if len(node.comparators) == 1 and isinstance(node.ops[0], ast.Eq | ast.NotEq) and _in_module(project, node):
            names = [n.id if isinstance(n, ast.Name) else n.attr for n in _named(node.comparators[0])]
            if any(PAD.search(name) for name in names):
                yield node
    for call in project.calls:
        given = [k for k in call.keywords if k.arg in MASKS and not isinstance(k.value, ast.Constant)]
        if given and _in_module(project, call):
            yield given[0].value


def _named(node: ast.AST) -> Iterator[ast.Name | ast.Attribute]:
    yield from (n for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute))


def _in_module(project: Project, node: ast.AST) -> bool:
    around = project.class_of(node)
    return around is not None and project.is_module(around)


@rule("EVL636", subject=Subject.RUN)
def padding_in_the_mean(record: Record) -> Iterator[Finding]:
    """The loss of an evaluation is divided by the padding too.

    Why it matters: padding adds nothing to the sum and counts in the mean: loss and perplexity are too low, and depend
    on how long the longest sequence of each batch is.
    Found by: the sums of the cross entropy in an evaluation: over the number of all targets they are exactly what the
    script holds as its loss, over those that are not ignored they are not.
    Not an error: a mean over the targets that count; a sum over sequences.

    Wrong: `nll / targets.numel()` with `ignore_index=PAD` in the loss
    Right: `nll / (targets != PAD).sum()`
    """
    judged = []
    for evaluation in record.evaluations:
        sums = _sums(record, evaluation)
        if sums is not None:
            judged.append((evaluation, *sums, _held(evaluation, *sums)))
    if not judged:
        raise NotSeenError("no evaluation sums up a loss that ignores some targets")
    wrong = [one for one in judged if one[-1]]
    if len(wrong) >= max(1, len(judged) / 2):
        evaluation, total, counted, ignored, name = wrong[0]
        yield Finding(
            measured=f"{name} = {evaluation.values[name]:.5g}, over {counted + ignored} targets, {ignored} ignored",
            expected=f"{total / counted:.5g}, the mean over the {counted} that count",
            message="the sum of the loss is divided by the padding too",
            location=evaluation.values_loc or evaluation.passes[0]["loc"],
            hint="count the targets that are not ignored",
        )


def _sums(record: Record, evaluation: Evaluation) -> tuple[float, int, int] | None:
    """(sum of the loss, targets that count, targets that are ignored) of an evaluation, if all calls are described."""
    losses = [e for e in record.of("loss") if evaluation.after < e["i"] <= evaluation.end and not e["grad"]]
    total, counted, ignored = 0.0, 0, 0
    for event in losses:
        target, value = event.get("target"), event.get("value")
        if target is None or event["reduction"] != "sum" or not isinstance(value, int | float):
            return None
        left_out = target.get("ignored", 0)
        total, ignored = total + value, ignored + left_out
        counted += math.prod(target["shape"]) - left_out
    return (total, counted, ignored) if ignored >= LEAST_IGNORED * counted > 0 else None


def _held(evaluation: Evaluation, total: float, counted: int, ignored: int) -> str:
    """The variable that is the mean over all targets, if none is the mean over those that count."""
    wrong, right = (_forms(total / n) for n in (counted + ignored, counted))
    named = {k: v for k, v in evaluation.values.items() if REPORTED.search(k.replace("_", " "))}
    if any(_is(v, one) for v in named.values() for one in right):
        return ""
    return next((k for k, v in named.items() if any(_is(v, one) for one in wrong)), "")


def _forms(mean: float) -> tuple[float, float]:
    return mean, math.exp(min(mean, 50))


def _is(value: float, other: float) -> bool:
    return abs(value - other) <= EXACT * abs(other)
