"""CFG: options that are read under another name, or do not arrive where they belong."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from verify.options import flow_of
from verify.options.flow import Flow
from verify.options.model import Key
from verify.report import Finding, Status, shortlist
from verify.rules import Subject, rule
from verify.source import text_of
from verify.trace.record import NotSeenError, Record

# Spellings of one thing, without their underscores.
DECAY = ("weightdecay", "wd", "l2", "weightdecayrate")
MOMENTUM = ("momentum", "sgdmomentum")
SMOOTHING = ("labelsmoothing", "smoothing", "labelsmooth")


@rule("CFG506", severity=Status.WARN, subject=Subject.RUN)
def option_read_under_another_name(record: Record) -> Iterator[Finding]:
    """A key that the configuration does not have is read with a default, beside one of nearly the same name.

    Why it matters: the default is used whatever the file says.
    Found by: `config.get("wd", 0.0)` and `getattr(args, "wd", 0.0)` where the options have no `wd`, but a
    `weight_decay`: another spelling, the initials, a slip of a letter, or a part of the name.
    Not an error: optional keys that the file leaves out and has nothing like.

    Wrong: `weight_decay: 0.0005` in config.yaml and `config.get("wd", 0.0)`
    Right: `config["weight_decay"]`
    """
    flow = flow_of(record)
    for call, asked, keys in _reads_with_default(flow):
        near = [key for key in keys if key != asked and _is_near(asked, key)]
        if asked not in keys and near:
            yield Finding(
                measured=f"{ast.unparse(call)}; there is {shortlist(near)}",
                expected="the name that the options have",
                message=f"{asked} is not among the options, so the default is always used",
                hint=f"read {near[0]}",
                location=flow.project.at(call),
            )


def _reads_with_default(flow: Flow) -> Iterator[tuple[ast.Call, str, dict[str, Key]]]:
    """(call, key that is asked for, keys that there are) of reads that fall back on a default."""
    for call in flow.project.calls:
        holder, asked = _read(call)
        found = flow.values.get(holder, set()) if holder is not None and asked else set()
        if len(found) != 1 or found & flow.escaped:
            continue
        options, where = next(iter(found))
        if options.kind in ("file", "argparse", "dict") and not any(value[0] is options for value, _ in flow.written):
            yield call, asked, options.at(where)


def _read(call: ast.Call) -> tuple[ast.expr | None, str]:
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("get", "pop") and len(call.args) == 2:
        return call.func.value, text_of(call.args[0]) or ""
    if isinstance(call.func, ast.Name) and call.func.id == "getattr" and len(call.args) == 3:
        return call.args[0], text_of(call.args[1]) or ""
    return None, ""


def _is_near(asked: str, key: str) -> bool:
    one, other = _plain(asked), _plain(key)
    if one == other or any(one in group and other in group for group in (DECAY, MOMENTUM, SMOOTHING)):
        return True
    parts, others = asked.lower().split("_"), key.lower().split("_")
    initials = "".join(part[:1] for part in others)
    if len(others) > 1 and one == initials:
        return True
    short, long = sorted((set(parts), set(others)), key=len)
    if len(short) + 1 == len(long) and short < long and long - short <= {"num", "n", "rate"}:
        return True
    return min(len(one), len(other)) >= 6 and _is_slip(one, other)


def _is_slip(one: str, other: str) -> bool:
    """Whether two words differ by a letter more, less, other, or two that changed places."""
    if abs(len(one) - len(other)) > 1:
        return False
    start = next(
        (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
    rest, more = one[start:], other[start:]
    swapped = rest[:2] == more[:2][::-1] and rest[2:] == more[2:]
    return swapped or rest[1:] == more or rest == more[1:] or rest[1:] == more[1:]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@rule("CFG507", severity=Status.WARN, subject=Subject.RUN)
def option_without_effect(record: Record) -> Iterator[Finding]:
    """The configuration asks for weight decay, momentum or label smoothing, and the run has none.

    Why it matters: whoever reads the configuration, or the log that repeats it, believes that it was on.
    Found by: the only option of that name, with a value that is not zero, against the settings of every optimizer and
    of every loss of the training.
    Not an error: a value that arrives in some of the parameter groups; an option that the command line sets to zero; a
    momentum beside an optimizer that has none. An option that nothing reads is left to CFG502.

    Wrong: `parser.add_argument("--weight-decay", default=5e-4)` and `SGD(model.parameters(), lr=args.lr)`
    Right: `SGD(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)`
    """
    record.need_training(3)
    asked = _asked(record)
    if not asked:
        raise NotSeenError("no option asks for weight decay, momentum or label smoothing")
    stepped = [made for number, made in record.optimizers.items() if number in record.steps_of]
    groups = [group for made in stepped for group in made["groups"]]
    sgd = [group for made in stepped if made["cls"] == "SGD" for group in made["groups"]]
    smoothings = [e["smoothing"] for e in record.of("loss") if e["fn"] == "cross_entropy" and e["needs_grad"]]
    seen: dict[str, list[Any]] = {
        "weight decay": [group.get("weight_decay") for group in groups],
        "momentum": [group.get("momentum") for group in sgd],
        "label smoothing": smoothings,
    }
    for what, (name, value, place) in asked.items():
        values = seen[what]
        if values and all(isinstance(one, int | float) and one == 0 for one in values):
            yield Finding(
                measured=f"{name} = {value:g}, and {what} 0 in the run",
                expected=f"{value:g}",
                message=f"the configuration asks for {what}, and nothing gets it",
                hint=f"pass {name} on to the {'loss' if what == 'label smoothing' else 'optimizer'}",
                location=place,
            )


def _asked(record: Record) -> dict[str, tuple[str, float, str]]:
    """What -> (name of the option, its value, where), for what exactly one option asks for."""
    found: dict[str, list[tuple[str, float, str]]] = {}
    names = {"weight decay": DECAY, "momentum": MOMENTUM, "label smoothing": SMOOTHING}
    flow = flow_of(record)
    typed = set(record.run["command"])
    for options in flow.options:
        if options.kind not in ("file", "argparse") or not flow.seen(options):
            continue
        unread = {id(key) for _, key in flow.unread(options)}
        for name, key in _leaves(options.keys):
            if id(key) in unread:
                continue
            what = next((what for what, spellings in names.items() if _plain(name) in spellings), "")
            value = _number(key.value) if options.kind == "file" else _default(record, name)
            if what and value:
                given = any(word.lstrip("-").replace("-", "_").startswith(name) for word in typed)
                place = f"{key.path or options.path}:{key.line}"
                found.setdefault(what, []).append((name, 0.0 if given else value, place))
    return {what: one[0] for what, one in found.items() if len(one) == 1 and one[0][1]}


def _leaves(keys: dict[str, Key]) -> Iterator[tuple[str, Key]]:
    for name, key in keys.items():
        if key.below:
            yield from _leaves(key.below)
        else:
            yield name, key


def _default(record: Record, name: str) -> float:
    for event in record.of("argparse"):
        for option in event["options"]:
            if option["dest"] == name:
                return _number(option["default"])
    return 0.0


def _number(value: object) -> float:
    try:
        return 0.0 if isinstance(value, bool) else float(str(value))
    except ValueError:
        return 0.0
