"""Sums of losses that hold on to the graphs of their batches, beside losses that are sums themselves."""

from __future__ import annotations

import types

import torch

from verify.trace.child import reported


def kept(terms: int, **variables: object) -> set[str]:
    """Names of the variables that keep graphs, in a script whose losses have so many terms."""
    frame = types.SimpleNamespace(f_locals=variables)
    return set(reported.kept_graphs([frame], terms))  # type: ignore[list-item]


def losses(count: int) -> list[torch.Tensor]:
    weight = torch.ones(3, requires_grad=True)
    return [(weight * n).pow(2).mean() for n in range(1, count + 1)]


def test_running_sum_and_list_of_losses() -> None:
    assert kept(0, total=sum(losses(8)), history=losses(8)) == {"total", "history"}
    assert kept(0, mean=sum(losses(8)) / 8) == {"mean"}
    assert not kept(0, total=sum(loss.item() for loss in losses(8)))


def test_loss_of_several_terms_is_the_graph_of_one_batch() -> None:
    four = losses(4)
    loss = four[0] + four[1] + four[2] + four[3]
    terms = reported.sum_depth(loss)
    assert terms == 3
    assert not kept(terms, loss=loss, four=four)
    total = loss
    for _ in range(7):
        total = total + loss
    assert kept(terms, loss=loss, total=total) == {"total"}


def test_stacked_losses_are_terms_of_one() -> None:
    four = losses(4)
    assert reported.sum_depth(torch.stack(four).mean()) == 4
    assert not kept(4, scales=four)
