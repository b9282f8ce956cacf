"""Stochastic depth and hooks, as the source has them: planted bugs and look-alikes."""

import textwrap

import pytest

from verify.rules.source_residual import hook_never_called, skip_is_dropped_too
from verify.trace.record import Record

BLOCK = """\
import torch
from torch import nn
class Block(nn.Module):
    def forward(self, x):
        skip = x if self.short is None else self.short(x)
        out = self.branch(x)
"""
HOOKS = """\
import torch
class Hook:
    def before_step(self, trainer): ...
    def after_step(self, trainer): ...
    def after_epoch(self, trainer): pass
class Clip(Hook):
    def __init__(self, limit):
        self.limit = limit
    def NAME(self, trainer):
        clip(trainer.model, self.limit)
class Trainer:
    def call(self, name):
        for hook in self.hooks:
            getattr(hook, name)(self)
    def train(self):
        self.call("before_step")
        self.call("after_step")
"""


def found(rule, text: str) -> int:
    return len(list(rule(Record([{"kind": "source", "path": "train.py", "text": text}]))))


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("return self.drop_path(skip + out)", 1),
        ("return self.drop_path(x + self.mlp(x))", 1),
        ("x = self.drop_path1(x + self.mlp(x))\nreturn self.norm(x)", 1),
        ("return self.stochastic_depth(out + self.shortcut(x))", 1),
        ("return skip + self.drop_path(out)", 0),
        ("return x + self.drop_path(out + self.mlp(x))", 0),
        ("both = self.drop_path(out + self.mlp(x))\nreturn x + both", 0),
        ("return self.dropout(x + self.position)", 0),
        ("out = self.drop_path(skip + out)\nreturn x + out", 0),
    ],
)
def test_stochastic_depth_on_the_sum(line: str, count: int) -> None:
    assert found(skip_is_dropped_too, BLOCK + textwrap.indent(line, " " * 8) + "\n") == count


def test_hooks_that_nobody_calls() -> None:
    assert found(hook_never_called, HOOKS.replace("NAME", "before_optim_step")) == 1
    assert found(hook_never_called, HOOKS.replace("NAME", "before_step")) == 0
    assert found(hook_never_called, HOOKS.replace("NAME", "limit_of") + "print(Clip(1).limit_of(None))\n") == 0
    assert found(hook_never_called, HOOKS.replace("NAME", "state_dict")) == 0
    assert found(hook_never_called, HOOKS.replace("NAME(self, trainer)", "before_all(self)")) == 0
    real = HOOKS.replace("pass\n", "\n        self.count = 1\n").replace("NAME", "summary")
    assert found(hook_never_called, real) == 0
