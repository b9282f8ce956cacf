"""Pseudo-labels that are chosen by logits, and what looks like it."""

from __future__ import annotations

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

STEP = """
import torch
import torch.nn.functional as F

class Trainer:
    def __init__(self, cfg):
        self.threshold = cfg["threshold"]

    def losses(self, x_w, x_s):
        logits = self.model(torch.cat([x_w, x_s]))
        logits_w, logits_s = logits.split(8)
        scores = {scores}
        conf, pseudo = scores.max(dim=-1)
        mask = (conf >= {level}).float()
        return (F.cross_entropy(logits_s, pseudo, reduction="none") * mask).mean()
"""


def found(code: str, options: str = "threshold: 0.95\n") -> bool:
    run = Run().more("source", path="train.py", text=code).more("source", path="config.yaml", text=options)
    return bool(judge(run.record(), ["LOS925"]).of(Status.FAIL, Status.WARN))


@pytest.mark.parametrize("level", ["0.95", "self.threshold"])
def test_logits_against_a_probability(level: str) -> None:
    assert found(STEP.format(scores="logits_w.detach()", level=level))


@pytest.mark.parametrize(
    ("code", "options"),
    [
        (STEP.format(scores="torch.softmax(logits_w.detach(), dim=-1)", level="0.95"), ""),
        (STEP.format(scores="logits_w.detach()", level="5.0"), ""),
        (STEP.format(scores="logits_w.detach()", level="self.threshold"), "threshold: 8.0\n"),
        (STEP.format(scores="logits_w.detach()", level="self.threshold"), ""),
        (STEP.format(scores="logits_w", level="0.9").replace("logits.split(8)", "logits.softmax(1).split(8)"), ""),
        (STEP.format(scores="logits_w", level="0.9").replace("conf, pseudo", "conf, _"), ""),
    ],
)
def test_probabilities_and_other_thresholds(code: str, options: str) -> None:
    assert not found(code, options)
