"""LOS: what pseudo-labels are chosen by."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.metrics import THRESHOLD
from verify.source import DEPTH, Binding, Project, literal, text_of, torch_project
from verify.trace.record import NotSeenError, Record

LOGITS = re.compile(r"(?<![a-z])logits?(?![a-z])", re.IGNORECASE)
SQUASHED = re.compile(r"softmax|sigmoid|prob|normali[sz]e|(?<![a-z])exp(?![a-z])", re.IGNORECASE)


@rule("LOS925", severity=Status.WARN, subject=Subject.RUN)
def confidence_of_logits(record: Record) -> Iterator[Finding]:
    """Pseudo-labels are chosen by logits, with the threshold of a probability.

    Why it matters: the largest logit is above 0.95 nearly always; every guess of the model becomes a label, wrong ones
    too, and the threshold has no effect.
    Found by: reading the source: the value of `max` over the classes of something that is called logits, and that
    nothing squashes on the way, compared with a threshold that is a number between 0 and 1, in the source or under the
    same name in a file of options; the index of the same `max` is used too.
    Not an error: probabilities; a threshold above 1; the largest logit as a score of its own.

    Wrong: `conf, pseudo = logits.max(dim=-1)` and `mask = conf >= 0.95`
    Right: `conf, pseudo = logits.softmax(dim=-1).max(dim=-1)`
    References: Sohn et al. 2020, "FixMatch".
    """
    project = torch_project(record)
    seen = False
    for node in project.nodes(ast.Compare):
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Gt | ast.GtE) or not isinstance(node.left, ast.Name):
            continue
        scores = _largest_of(project, node.left)
        seen = seen or scores is not None
        if scores is not None and _are_logits(project, scores) and _is_share(record, project, node.comparators[0]):
            yield Finding(
                measured=f"{ast.unparse(node)}, where {node.left.id} is the largest of {ast.unparse(scores)}",
                expected="a softmax before the max",
                message="the confidence of pseudo-labels is a logit, the threshold is one for probabilities",
                location=project.at(node),
                hint=f"torch.softmax({ast.unparse(scores)}, dim=-1).max(dim=-1)",
            )
            return
    if not seen:
        raise NotSeenError("no confidence is compared with a threshold")


def _single(project: Project, name: ast.Name) -> Binding | None:
    _, bindings = project.lookup(name)
    return bindings[0] if len(bindings) == 1 else None


def _largest_of(project: Project, name: ast.Name) -> ast.expr | None:
    """`x` of `name, index = x.max(dim)` or `torch.max(x, dim)`, where both are given names."""
    binding = _single(project, name)
    if binding is None or binding.kind != "item" or binding.index != 0 or not isinstance(binding.expr, ast.Call):
        return None
    call = binding.expr
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "max") or not (call.args or call.keywords):
        return None
    if isinstance(binding.node, ast.Assign) and isinstance(binding.node.targets[0], ast.Tuple):
        second = binding.node.targets[0].elts[1]
        if isinstance(second, ast.Name) and second.id.startswith("_"):
            return None
    return call.args[0] if project.qualified(call.func) == "torch.max" else call.func.value


def _are_logits(project: Project, node: ast.expr) -> bool:
    """Whether the way of a value is seen, some name on it says logits, and nothing on it squashes."""
    for _ in range(DEPTH):
        text = ast.unparse(node)
        if SQUASHED.search(text):
            return False
        if LOGITS.search(text.replace("_", " ")):
            return _is_clean(project, node)
        inner = next((n for n in ast.walk(node) if isinstance(n, ast.Name)), None)
        binding = _single(project, inner) if inner is not None else None
        if binding is None or binding.expr is None:
            return False
        node = binding.expr
    return False


def _is_clean(project: Project, node: ast.expr) -> bool:
    """Whether no assignment to what is called logits squashes it."""
    for name in (n for n in ast.walk(node) if isinstance(n, ast.Name)):
        _, bindings = project.lookup(name)
        if any(b.expr is not None and SQUASHED.search(ast.unparse(b.expr)) for b in bindings):
            return False
    return True


def _is_share(record: Record, project: Project, level: ast.expr) -> bool:
    """Whether a threshold is a number between 0 and 1, in the source or in a file of options."""
    value = literal(level)
    if isinstance(value, int | float):
        return 0.3 <= value < 1
    name = level.attr if isinstance(level, ast.Attribute) else level.id if isinstance(level, ast.Name) else ""
    if not THRESHOLD.search(name.replace("_", " ")):
        return False
    keys = {name}
    for origin in project.origins(level):
        number = literal(origin)
        if isinstance(number, int | float):
            return 0.3 <= number < 1
        keys |= {key for n in ast.walk(origin) if (key := text_of(n))} if origin is not None else set()
    given = [
        float(found)
        for text in record.sources.values()
        for key in keys
        for found in re.findall(rf"(?<![\w]){re.escape(key)}[\"']?\s*[:=]\s*(\d*\.?\d+)", text)
    ]
    return bool(given) and all(0.3 <= number < 1 for number in given)
