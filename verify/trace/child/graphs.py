"""What the graph behind a loss shows: shapes that were broadcast against each other, terms without a gradient."""

from __future__ import annotations

from typing import Any

MOST_NODES = 60
# What joins the terms of a loss.
JOINS = ("Add", "Mul", "Div", "Sub", "Neg", "Rsub", "ToCopy", "Squeeze", "Unsqueeze", "View", "Reshape")


def look(root: Any) -> dict[str, Any]:
    """`broadcast`: shapes of an output (N,) or (N, 1) and of its difference to a constant, (N, N); `constant`: whether
    the loss has a term without a graph. What is not so is left out."""
    node = getattr(root, "grad_fn", None)
    if node is None:
        return {}
    found = {"broadcast": _broadcast(node), "constant": _has_constant(node)}
    return {key: value for key, value in found.items() if value}


def _shape(node: Any, index: int = 0) -> tuple[int, ...] | None:
    """The shape of what a forward operation gave."""
    metadata = getattr(node, "_input_metadata", None)
    if not metadata or index >= len(metadata):
        return None
    return tuple(int(size) for size in metadata[index].shape)


def _broadcast(root: Any) -> list[list[int]] | None:
    """The shapes of the output and of the difference, for (N, N) from an output (N,) or (N, 1) and a constant."""
    nodes = [root]
    for node in nodes:  # grows as it goes
        children = [(child, index) for child, index in node.next_functions if child is not None]
        whole = _shape(node)
        if type(node).__name__.startswith("SubBackward") and len(node.next_functions) == 2 and len(children) == 1:
            child, index = children[0]
            part = _shape(child, index)
            n = whole[0] if whole else 0
            made = type(child).__name__.startswith(("Unsqueeze", "Expand", "Repeat"))
            if n > 1 and whole == (n, n) and part in ((n,), (n, 1)) and not made:
                return [list(part), list(whole)]
        nodes += [child for child, _ in children if child not in nodes and len(nodes) < MOST_NODES]
    return None


def _has_constant(root: Any) -> bool:
    """Whether the sum of single numbers that makes up a loss has a term without a graph."""
    nodes = [root]
    for node in nodes:  # grows as it goes
        name = type(node).__name__
        if _shape(node) not in ((), (1,)) or not name.startswith(JOINS):
            continue
        if name.startswith(("Add", "Sub")) and any(child is None for child, _ in node.next_functions):
            return True
        children = [child for child, _ in node.next_functions if child is not None]
        nodes += [child for child in children if child not in nodes and len(nodes) < MOST_NODES]
    return False
