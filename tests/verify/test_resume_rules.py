"""What a resumed run has lost, averages that are none, and checkpoints: planted, and look-alikes that pass."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from tests.verify.run_records import Run
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


MODEL_AND_EPOCH = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()
start_epoch = 0
if args.resume:
    ckpt = torch.load(path)
    model.load_state_dict(ckpt["model"])
    best_acc = ckpt["best_acc"]
    start_epoch = ckpt["epoch"]{plus}
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
for epoch in range(start_epoch, 100):
    train(epoch)
    scheduler.step({given})
"""


def resumes(code: str = MODEL_AND_EPOCH, plus: str = "", given: str = "") -> str:
    return SAVE + code.replace("{plus}", plus).replace("{given}", given)


class TestOptimizerNeverReadBack:
    def test_all_that_is_saved_beside_weights_and_epoch(self):
        found = problems(checkpoint.resume_loses_state, saved(resumes(plus=" + 1")))
        assert [(f.measured, f.status) for f in found] == [("never read back: optimizer, scheduler, ema", Status.FAIL)]

    def test_the_epoch_goes_by_another_name(self):
        code = resumes().replace("range(start_epoch", "range(args.start_epoch")
        code = code.replace("start_epoch = ckpt", "args.start_epoch = ckpt")
        assert len(problems(checkpoint.resume_loses_state, saved(code))) == 1

    def test_the_epoch_is_handed_to_a_function(self):
        code = resumes().replace("for epoch in range(start_epoch", "def fit(first):\n  for epoch in range(first")
        code = code.replace("    train(epoch)\n    scheduler.step()", "    train(epoch)\nfit(first=start_epoch)")
        assert len(problems(checkpoint.resume_loses_state, saved(code))) == 1

    @pytest.mark.parametrize(
        "code",
        [
            resumes().replace('start_epoch = ckpt["epoch"]', 'print("trained for", ckpt["epoch"])'),  # evaluation
            resumes().replace("range(start_epoch, 100)", "range(100)"),  # fine-tuning
            resumes().replace('model.load_state_dict(ckpt["model"])', "pass"),
            resumes().replace('best_acc = ckpt["best_acc"]', "optimizer.load_state_dict(find(ckpt, 'optim'))"),
            resumes().replace('best_acc = ckpt["best_acc"]', "restore(**ckpt)"),
            resumes() + LOAD + REST,
        ],
    )
    def test_read_back_or_not_resumed(self, code: str):
        assert problems(checkpoint.resume_loses_state, saved(code)) == []

    @pytest.mark.parametrize(("momentum", "lost"), [(0.9, "o, s"), (0.0, "s")])
    def test_nothing_was_saved_yet(self, momentum: float, lost: str):
        keep = "def keep(state):\n  torch.save(state, path)\n"
        states = "'o': optimizer.state_dict(), 's': scheduler.state_dict()"
        code = keep + NEVER_SAVED + f"    keep({{'model': model.state_dict(), {states}, 'epoch': epoch}})\n"
        record = trained(code, momentum=momentum)
        unsaved = Record([e for e in record.events if e["kind"] != "save"])
        found = problems(checkpoint.resume_loses_state, unsaved)
        assert [f.measured for f in found] == [f"never read back: {lost}"]

    def test_an_optimizer_without_state(self):
        state = {"model": WEIGHTS, "optimizer": {**STATE["optimizer"], "keys": {"entries": 0}}, "epoch": STATE["epoch"]}
        record = saved(resumes(), content={"kind": "dict", "type": "dict", "keys": state})
        assert problems(checkpoint.resume_loses_state, record) == []

    def test_another_script_reads_it(self):
        sibling = "optimizer.load_state_dict(s['optimizer'], s['scheduler'], s['ema'])"
        assert problems(checkpoint.resume_loses_state, saved(resumes(), sibling)) == []


def kept(*names: str) -> dict[str, Any]:
    return {"kind": "dict", "type": "dict", "keys": {name: STATE[name] for name in ("model", *names)}}


def trained(code: str, optimizer: str = "SGD", momentum: float = 0.9, **more: Any) -> Record:
    """A run whose checkpoint holds weights and epoch alone."""
    record = saved(code, **{"content": kept("epoch", "best_acc"), **more})
    events = [
        {"kind": "optimizer", "id": 0, "cls": optimizer, "groups": [{"momentum": momentum}], "loc": "train.py:20"},
        {"kind": "scheduler", "id": 0, "cls": "CosineAnnealingLR", "numbers": {}, "opt": 0, "loc": "train.py:21"},
        {"kind": "step", "opt": 0, "i": 99, "lrs": [0.1]},
    ]
    return Record(record.events + events)


NEVER_SAVED = resumes().replace(SAVE, "")


class TestNeverSaved:
    @pytest.mark.parametrize(
        ("optimizer", "momentum", "lost"),
        [
            ("SGD", 0.9, "the moments of SGD or the schedule"),
            ("Adam", 0.0, "the moments of Adam or the schedule"),
            ("SGD", 0.0, "the schedule"),
        ],
    )
    def test_the_epoch_alone_comes_back(self, optimizer: str, momentum: float, lost: str):
        found = problems(checkpoint.resume_loses_state, trained(NEVER_SAVED, optimizer, momentum))
        assert [(f.message, f.status) for f in found] == [
            (f"resuming brings back the epoch, but not {lost}", Status.WARN)
        ]

    def test_nothing_was_stepped_or_saved_yet(self):
        events = [e for e in trained(NEVER_SAVED).events if e["kind"] not in ("save", "step", "scheduler")]
        code = NEVER_SAVED + "    torch.save({'model': model.state_dict(), 'epoch': epoch}, path)\n"
        events = [{**e, "text": "import torch\n" + code} if e["kind"] == "source" else e for e in events]
        record = Record([*events, {"kind": "scheduler_unused", "cls": "StepLR", "opt": 0}])
        (found,) = problems(checkpoint.resume_loses_state, record)
        assert found.message.endswith("not the moments of SGD or the schedule")

    def test_the_schedule_goes_by_the_epoch(self):
        code = resumes(given="epoch").replace(SAVE, "")
        (found,) = problems(checkpoint.resume_loses_state, trained(code))
        assert found.message.endswith("not the moments of SGD")

    @pytest.mark.parametrize(
        "code",
        [
            NEVER_SAVED.replace("range(start_epoch, 100)", "range(100)"),
            NEVER_SAVED.replace('start_epoch = ckpt["epoch"]', 'print(ckpt["epoch"])'),
            NEVER_SAVED + "torch.save([optimizer.state_dict(), scheduler.state_dict()], 'state.pt')\n",
            NEVER_SAVED.replace("import argparse", "import argparse, lightning"),
        ],
    )
    def test_it_does_not_resume_or_saves_them_elsewhere(self, code: str):
        assert problems(checkpoint.resume_loses_state, trained(code)) == []

    def test_nothing_that_is_lost(self):
        code = resumes(given="epoch").replace(SAVE, "")
        assert problems(checkpoint.resume_loses_state, trained(code, momentum=0.0)) == []

    def test_the_optimizer_is_in_another_file(self):
        record = trained(NEVER_SAVED)
        record.events[0]["content"] = kept("optimizer")
        assert problems(checkpoint.resume_loses_state, record) == []

    def test_a_second_start_has_the_last_word(self):
        record = trained(NEVER_SAVED)
        judged = {"kind": "resume", "lost": [], "back": []}
        assert problems(checkpoint.resume_loses_state, Record([*record.events, judged])) == []
        skipped = {"kind": "resume", "skipped": "no time"}
        assert len(problems(checkpoint.resume_loses_state, Record([*record.events, skipped]))) == 1


def numbered(plus: int = 0, middle: bool = False, start: int = 0) -> Run:
    """A run that saves weights and the number of the epoch, after its training or in the middle of it."""
    run = Run(3)
    run.put("loop", start=start, stop=start + 3)
    for event in run.events:
        if event["kind"] == "save":
            number = {"kind": "value", "value": start + event["epoch"] + plus}
            event["content"] = {"kind": "dict", "type": "dict", "keys": {"model": WEIGHTS, "epoch": number}}
    if middle:
        saves = {e["epoch"]: e for e in run.events if e["kind"] == "save"}
        run.drop("save")
        place = next(n for n, e in enumerate(run.events) if e["kind"] == "step" and e["epoch"] == 1)
        run.events.insert(place, saves[1])
    return run


class TestFinishedEpochAgain:
    def found(self, run: Run, code: str = NEVER_SAVED, *events: tuple[str, dict[str, Any]]) -> list[Finding]:
        run.more("source", path="train.py", text="import torch\n" + code)
        for kind, fields in events:
            run.more(kind, **fields)
        return problems(checkpoint.resume_goes_back, run.record())

    @pytest.mark.parametrize("start", [0, 1])
    def test_the_number_of_the_finished_epoch(self, start: int):
        found = self.found(numbered(start=start))
        assert [f.measured.partition(";")[0] for f in found] == ["start_epoch = ckpt['epoch']"]
        assert "trains an epoch again" in found[0].message

    def test_a_second_start_that_could_not_be_judged(self):
        event = {"lost": [], "back": [], "back_skipped": "it failed"}
        assert len(self.found(numbered(), NEVER_SAVED, ("resume", event))) == 1

    @pytest.mark.parametrize(
        ("run", "code"),
        [
            (numbered(plus=1), NEVER_SAVED),  # the number of the next epoch
            (numbered(), resumes(plus=" + 1")),
            (numbered(), NEVER_SAVED.replace("range(start_epoch,", "range(start_epoch + 1,")),
            (numbered(), NEVER_SAVED.replace("optimizer =", "start_epoch += 1\noptimizer =", 1)),
            (numbered(middle=True), NEVER_SAVED),
            (numbered(), NEVER_SAVED.replace("range(start_epoch, 100)", "range(100)")),
        ],
    )
    def test_the_next_epoch_or_not_for_sure(self, run: Run, code: str):
        assert self.found(run, code) == []

    def test_a_second_start_has_the_last_word(self):
        assert self.found(numbered(), NEVER_SAVED, ("resume", {"lost": [], "back": []})) == []

    @pytest.mark.parametrize(
        ("test", "read", "found"),
        [
            ("acc > best_acc", ["best.pt"], 1),
            ("improved", ["best.pt"], 1),
            ("acc > best_acc", ["best.pt", "last.pt"], 0),
            ("acc > best_acc", [], 0),  # the file was chosen for it
            ("epoch % 1 == 0", ["best.pt"], 0),
        ],
    )
    def test_the_best_alone_though_it_was_the_last(self, test: str, read: list[str], found: int):
        run = Run().more("resume", lost=[], back=[], own=read)
        code = f"{chr(10) * 43}if {test}:\n    torch.save(state, 'best.pt')\n"
        assert len(self.found(run, code)) == found

    def test_the_best_saved_by_a_function(self):
        run = Run().more("resume", lost=[], back=[], own=["best.pt"])
        code = f"{chr(10) * 42}def save():\n\n    torch.save(state, 'best.pt')\n\n"
        assert len(self.found(run, code + "if acc > best:\n    save()\n")) == 1
        assert self.found(run, code + "save()\n") == []


TRAINS = """
def train(n):
    for x, y in loader:
        loss(model(x), y).backward()
def test(n):
    state = {'model': model.state_dict(), 'epoch': n{saved}}
    torch.save(state, path)
"""


class TestFinishedEpochBeforeAnythingWasSaved:
    def found(self, code: str, saved: str = "") -> list[Finding]:
        text = "import torch\n" + TRAINS.replace("{saved}", saved) + code
        return problems(checkpoint.resume_goes_back, Record([{"kind": "source", "path": "train.py", "text": text}]))

    def code(self, body: str = "train(epoch)\n    test(epoch)") -> str:
        return NEVER_SAVED.replace("train(epoch)", body)

    @pytest.mark.parametrize("more", ["", "\n    log({'epoch': epoch + 1})"])
    def test_it_is_saved_after_its_training(self, more: str):
        assert len(self.found(self.code("train(epoch)\n    test(epoch)" + more))) == 1

    @pytest.mark.parametrize(
        ("body", "saved"),
        [
            ("train(epoch)\n    test(epoch)", " + 1"),
            ("train(epoch)\n    test(epoch + 1)", ""),
            ("test(epoch)\n    train(epoch)", ""),
            ("train(epoch)", ""),
        ],
    )
    def test_it_is_not_for_sure(self, body: str, saved: str):
        assert self.found(self.code(body), saved) == []


class TestNotJudged:
    def test_a_resumed_run_that_failed_is_no_pass_for_its_epochs(self):
        record = Record([{"kind": "resume", "lost": [], "back": [], "back_skipped": "it failed", "i": 0}])
        with pytest.raises(NotSeenError, match="it failed"):
            list(checkpoint.resume_goes_back(record))

    def test_without_python_files_a_second_start_is_judged(self):
        source = {"kind": "source", "path": "config.yaml", "text": "lr: 0.1", "i": 0}
        record = Record([source, {"kind": "resume", "lost": [], "back": [], "i": 1}])
        assert [*checkpoint.resume_loses_state(record), *checkpoint.resume_goes_back(record)] == []

    def test_the_reason_is_kept_when_the_source_is_there(self):
        record = saved(SAVE + LOAD + REST)
        event = {"kind": "resume", "skipped": "no time"}
        for rule in (checkpoint.resume_goes_back, checkpoint.resume_loses_state):
            with pytest.raises(NotSeenError, match="no time"):
                list(rule(Record([*record.events, event])))


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
