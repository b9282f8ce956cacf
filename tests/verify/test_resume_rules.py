"""What a resumed run has lost, averages that are none, and checkpoints: planted, and look-alikes that pass."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from verify.report import Finding, Status
from verify.rules import averaging, checkpoint
from verify.trace.record import Event, NotSeenError, Record
from verify.trace.resumed import lost_average, lost_values

STEPS = 3


def run(
    values: list[dict[str, Any]], *, begin: int = 0, noise: float = 0.0, evaluated: float = 0.0, model: int = 0
) -> Record:
    """A run of some epochs that holds `values` after each evaluation; `begin`: the epoch that it starts with."""
    events: list[Event] = []
    for n, held in enumerate(values):
        for step in range(n * STEPS, (n + 1) * STEPS):
            loss = 1 / (1 + begin * STEPS + step) + noise
            events.append({"kind": "backward", "step": step, "value": loss})
        after = (n + 1) * STEPS
        loss = 1 / (1 + begin + n) + noise + evaluated
        shown = {"losses": [loss], "reductions": ["mean"], "correct": 3, "model": model, "training": False}
        events.append(
            {"kind": "pass", "trained": False, "iteration": None, "step": after, "n": 8, "grad": False, **shown}
        )
        events.append({"kind": "held_values", "step": after, "values": held, "loc": "train.py:50"})
    if model:
        events.append({"kind": "twin", "model": model, "changed": True})
    return Record([{**event, "i": number} for number, event in enumerate(events)])


def epochs(best: list[float], bad: list[int]) -> list[dict[str, Any]]:
    return [{"best_acc": b, "bad_epochs": n, "lr": 0.1} for b, n in zip(best, bad, strict=True)]


BEST, BAD = [0.0, 0.4, 0.6, 0.6, 0.6, 0.8], [0, 0, 0, 1, 2, 0]
WHOLE = epochs(BEST, BAD)


def lost(again: list[dict[str, Any]], **options: Any) -> str:
    """What is lost by a run that goes on after four of six epochs."""
    found = lost_values(run(WHOLE), run(WHOLE[:4]), run(again, begin=4, **options), 4 * STEPS, "train.py:9")
    return "; ".join(one["measured"].split(" is ")[0] for one in found)


class TestLostValues:
    def test_forgotten_best(self):
        assert lost(epochs([0.0, 0.5], [2, 0])) == "best_acc"

    def test_forgotten_best_of_a_run_that_does_not_repeat(self):
        assert lost(epochs([0.0, 0.5], [0, 0]), noise=0.01) == "best_acc"

    def test_forgotten_patience(self):
        assert lost(epochs([0.6, 0.8], [0, 0])) == "bad_epochs"

    def test_goes_on(self):
        assert lost(WHOLE[4:]) == ""

    def test_another_result_of_a_run_that_does_not_repeat(self):
        assert lost(epochs([0.7, 0.7], [0, 1]), noise=0.01) == ""

    def test_what_is_no_state_of_the_selection(self):
        again = [{**held, "best_epoch": 0, "wait_time": 3.5, "lr": 0.2} for held in WHOLE[4:]]
        whole = run([{**held, "best_epoch": n, "wait_time": 0.5} for n, held in enumerate(WHOLE)])
        assert lost_values(whole, run(WHOLE[:4]), run(again, begin=4), 4 * STEPS, "train.py:9") == []

    def test_best_of_each_epoch_goes_up_and_down(self):
        whole = [{"best_iou": value} for value in (0.3, 0.5, 0.4, 0.6)]
        again = run([{"best_iou": 0.2}], begin=2, noise=0.01)
        assert lost_values(run(whole), run(whole[:2]), again, 2 * STEPS, "train.py:9") == []

    def test_nothing_was_evaluated(self):
        assert lost_values(run(WHOLE), run(WHOLE[:4]), run([]), 4 * STEPS, "train.py:9") == []


class TestLostAverage:
    def found(self, **options: Any) -> list[dict[str, str]]:
        whole = run(WHOLE, model=1)
        return lost_average(whole, run(WHOLE[4:], begin=4, **{"model": 1, **options}), 4 * STEPS, "train.py:9")

    def test_evaluation_is_another_and_training_is_not(self):
        assert "average" in self.found(evaluated=0.2)[0]["message"]

    def test_goes_on(self):
        assert self.found() == []

    def test_training_is_another_too(self):
        assert self.found(noise=0.01, evaluated=0.2) == []

    def test_the_model_itself_is_evaluated(self):
        assert self.found(model=0, evaluated=0.2) == []


WEIGHTS = {"kind": "weights", "tensors": 9, "first": "0.weight", "prefix": "", "live": 6, "made_at": 6}
STATE = {
    "model": WEIGHTS,
    "optimizer": {"kind": "optimizer", "type": "dict", "keys": {"entries": 9}},
    "scheduler": {"kind": "scheduler", "type": "dict", "keys": {"last_epoch": {"kind": "value", "value": 2}}},
    "ema": WEIGHTS,
    "epoch": {"kind": "value", "value": 2},
    "best_acc": {"kind": "value", "value": 0.8},
    "args": {"kind": "other", "type": "argparse.Namespace"},
}
SAVE = "torch.save({'model': m, 'optimizer': o, 'scheduler': s, 'ema': e, 'epoch': n, 'best_acc': b}, path)\n"
LOAD = """
ckpt = torch.load(path)
model.load_state_dict(ckpt["model"])
optimizer.load_state_dict(ckpt["optimizer"])
"""
REST = """
scheduler.load_state_dict(ckpt["scheduler"])
ema.load_state_dict(ckpt["ema"])
start = ckpt["epoch"] + 1
best_acc = ckpt.get("best_acc", 0)
"""


def saved(code: str = "", sibling: str = "", **fields: Any) -> Record:
    """A run that saves its state twice, and whose source is `code`."""
    content = {"kind": "dict", "type": "dict", "keys": STATE}
    save = {
        "path": "last.pt",
        "epoch": 0,
        "fast": False,
        "content": content,
        "same": [],
        "loc": "train.py:30",
        **fields,
    }
    events: list[Event] = [{"kind": "save", "step": step, **save} for step in (3, 6)]
    events.append({"kind": "source", "path": "train.py", "text": "import torch\n" + textwrap.dedent(code)})
    events += [{"kind": "sibling", "path": "other.py", "text": sibling}] if sibling else []
    return Record([{**event, "i": number} for number, event in enumerate(events)])


def problems(rule: Any, record: Record) -> list[Finding]:
    try:
        return list(rule(record))
    except NotSeenError:
        return []


class TestNeverReadBack:
    def test_average_and_schedule_left_where_they_are(self):
        code = SAVE + LOAD + "best_acc = ckpt['best_acc']\n"
        found = problems(checkpoint.resume_loses_state, saved(code))
        assert [(f.measured, f.status) for f in found] == [("never read back: scheduler, ema", Status.FAIL)]

    def test_a_forgotten_number_alone_is_a_warning(self):
        found = problems(checkpoint.resume_loses_state, saved(SAVE + LOAD + REST.replace("best_acc", "loss")))
        assert [(f.measured, f.status) for f in found] == [("never read back: best_acc", Status.WARN)]

    @pytest.mark.parametrize(
        "code",
        [
            SAVE + LOAD + REST,
            SAVE + "model.load_state_dict(torch.load(path)['model'])\n",  # it does not resume
            SAVE + LOAD + "restore(**ckpt)\n",
            SAVE + LOAD + "for name, value in ckpt.items():\n    setattr(self, name, value)\n",
            SAVE + LOAD + "for name in parts:\n    parts[name].load_state_dict(ckpt[name])\n",
            SAVE + LOAD + "trainer.load(ckpt)\n",
            SAVE + LOAD + "vars(self).update(ckpt)\n",
        ],
    )
    def test_read_back_or_not_to_be_seen(self, code):
        assert problems(checkpoint.resume_loses_state, saved(code)) == []

    def test_another_script_reads_it(self):
        code = SAVE + LOAD + REST.replace('ckpt["ema"]', "state")
        assert problems(checkpoint.resume_loses_state, saved(code, "net.load_state_dict(state['ema'])")) == []


class TestUnsafe:
    def found(self, code: str, *loads: dict[str, Any], sibling: str = "") -> Finding:
        record = saved(code, sibling)
        problem = "Weights only load failed. \x1b[1mOnly if you trust it\x1b[0m"
        more = [{"kind": "saved_file", "path": "last.pt", "safe": False, "problem": problem, "size": 9}]
        more += [{"kind": "load", "own": True, "step": 6, "content": {}, **load} for load in loads]
        return next(checkpoint.checkpoint_unsafe(Record(record.events + more)))

    def test_nothing_loads_it_and_the_object_is_named(self):
        found = self.found(SAVE)
        assert found.status is Status.WARN
        assert found.measured == "'args' is of the class argparse.Namespace"

    def test_another_file_is_loaded_with_trust(self):
        code = "best = torch.load('best.pt', weights_only=False)\nlast = torch.load('last.pt')\n"
        load = {"path": "best.pt", "weights_only": False, "loc": "train.py:2"}
        assert self.found(code, load).status is Status.WARN

    @pytest.mark.parametrize(
        "code",
        [
            "torch.load('last.pt', weights_only=False)\n",
            "torch.load('backbone.pt')\ntorch.load('last.pt', weights_only=False)\n",
            "import functools\ntorch.load = functools.partial(torch.load, weights_only=False)\n",
        ],
    )
    def test_the_script_trusts_it(self, code):
        assert self.found(code).status is Status.NOTE

    def test_it_was_loaded_with_trust(self):
        load = {"path": "last.pt", "weights_only": False, "loc": "train.py:9"}
        assert self.found("", load).status is Status.NOTE

    def test_another_script_trusts_it(self):
        assert self.found("", sibling="torch.load(path, weights_only = False)").status is Status.NOTE


class TestAliasedAverage:
    def test_two_names_for_the_same_tensors(self):
        found = problems(averaging.ema_never_updated, saved(same=[["model", "ema"]]))
        assert [f.measured for f in found] == ["'ema' and 'model' of last.pt are the same tensors"]

    def test_only_before_averaging_begins(self):
        record = saved(same=[["model", "ema"]])
        record.events[1]["same"] = []
        assert problems(averaging.ema_never_updated, record) == []

    def test_weights_under_two_plain_names(self):
        assert problems(averaging.ema_never_updated, saved(same=[["model", "state_dict"]])) == []

    def test_held_in_a_dict(self):
        held = [{"kind": "average_aliased", "name": "ema.shadow", "step": s, "loc": "train.py:8"} for s in (3, 6)]
        found = problems(averaging.ema_never_updated, Record(saved().events + held))
        assert [f.measured for f in found] == ["ema.shadow holds the tensors of the model"]

    def test_held_in_a_dict_until_averaging_begins(self):
        held = [{"kind": "average_aliased", "name": "ema.shadow", "step": 3, "loc": "train.py:8"}]
        assert problems(averaging.ema_never_updated, Record(saved().events + held)) == []
