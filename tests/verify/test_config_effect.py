"""Options that are read under another name, or that do not arrive."""

from __future__ import annotations

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

BAD = (Status.FAIL, Status.WARN)
YAML = "optim:\n  lr: 0.1\n  weight_decay: 0.0005\n  num_warmup: 3\nbatch_size: 32\n"
HEAD = "import torch, yaml\ncfg = yaml.safe_load(open('config.yaml'))\nopt = cfg['optim']\n"
PARSER = """import argparse, torch
parser = argparse.ArgumentParser()
parser.add_argument("--weight-decay", type=float, default=5e-4)
parser.add_argument("--momentum", type=float, default=0.9)
args = parser.parse_args()
"""


def found(run: Run, code: str, text: str, yaml: str = YAML) -> bool:
    run.more("source", path="config.yaml", text=yaml).more("source", path="train.py", text=text)
    return bool(judge(run.record(), [code]).of(*BAD))


@pytest.mark.parametrize(
    "read",
    ["opt.get('wd', 0.0)", "opt.get('weight_decya', 0)", "opt.get('weightDecay', 0)", "opt.get('warmup', 0)"],
)
def test_a_key_under_another_name(read: str) -> None:
    assert found(Run(), "CFG506", HEAD + f"x = {read}\n")


@pytest.mark.parametrize(
    "read",
    [
        "opt.get('weight_decay', 0)",
        "opt.get('clip', 1.0)",
        "opt.get('min_lr', 0)",
        "opt.get('nesterov', False)",
        "other.get('wd', 0)",
        "cfg.get('wd', 0)",
        "opt.get('wd')",
    ],
)
def test_an_optional_key_is_no_other_name(read: str) -> None:
    assert not found(Run(), "CFG506", HEAD + f"other = {{}}\nx = {read}\n")


def test_getattr_of_parsed_options() -> None:
    assert found(Run(), "CFG506", PARSER + "x = getattr(args, 'wd', 0.0)\n")
    assert not found(Run(), "CFG506", PARSER + "x = getattr(args, 'weight_decay', 0.0)\n")


def without_decay(run: Run, **settings: float) -> Run:
    for event in run.events:
        if event["kind"] == "optimizer":
            event["groups"][0].update(settings)
    return run


LOGGED = (
    HEAD
    + "print(cfg['optim']['lr'])\nlog({'wd': opt['weight_decay'], 'w': opt['num_warmup'], 'b': cfg['batch_size']})\n"
)


def test_a_weight_decay_that_is_only_logged() -> None:
    assert found(without_decay(Run(), weight_decay=0.0), "CFG507", LOGGED)
    assert not found(Run(), "CFG507", LOGGED)
    assert not found(without_decay(Run(), weight_decay=0.0), "CFG507", LOGGED, YAML.replace("0.0005", "0.0"))


def test_what_nothing_reads_is_left_to_the_rule_about_that() -> None:
    assert not found(without_decay(Run(), weight_decay=0.0), "CFG507", HEAD + "print(opt['lr'])\n")


def parsed(run: Run, *typed: str) -> Run:
    options = [
        {"dest": "weight_decay", "flags": ["--weight-decay"], "default": "0.0005"},
        {"dest": "momentum", "flags": ["--momentum"], "default": "0.9"},
    ]
    run.put("run", command=["python", "train.py", *typed])
    return run.more("argparse", options=options, loc="train.py:5")


def test_defaults_of_the_command_line() -> None:
    text = PARSER + "print(args.weight_decay, args.momentum)\nlog(args.weight_decay, args.momentum)\n"
    assert found(parsed(without_decay(Run(), momentum=0.0)), "CFG507", text, "")
    assert not found(parsed(Run()), "CFG507", text, "")
    assert not found(parsed(without_decay(Run(), weight_decay=0.0), "--weight-decay", "0"), "CFG507", text, "")
    adam = parsed(without_decay(Run(), momentum=0.0)).put("optimizer", cls="Adam")
    assert not found(adam, "CFG507", text, "")
