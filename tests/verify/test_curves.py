"""The section about a watched run: whatever a record holds or lacks, it is drawn from what is there."""

from __future__ import annotations

import base64
import math
import random
import struct
from typing import Any

import pytest

from tests.verify.test_html import png
from verify.curves import read_story, run_section
from verify.html import render_html
from verify.report import Check, Report, Status
from verify.trace.record import Record

Event = dict[str, Any]


def a_run(epochs: int = 4, batches: int = 3) -> list[Event]:
    """Two loaders, a clip, a decaying learning rate, a checkpoint an epoch, and one that is read at the end."""
    events: list[Event] = [{"kind": "run", "train_batches": batches}]
    step = iteration = 0

    def emit(kind: str, **fields: Any) -> None:
        events.append({"kind": kind, "i": len(events), "t": len(events) / 10, **fields})

    for epoch in range(epochs):
        iteration += 1
        emit("iter_begin", loader=0, epoch=epoch, iteration=iteration)
        for _ in range(batches):
            emit("loss", step=step, fn="cross_entropy", value=2.0 / (step + 1), grad=True, n=8)
            emit("grad_norms", step=step + 1, norms={"stem.weight": 0.3, "stem.bias": 0.4, "head.weight": 0.0})
            step += 1
            emit("step", n=step, opt=0, lrs=[0.1 / 2**epoch], epoch=epoch, grad_norm=float(step), clip=5.0)
        emit("iter_end", loader=0, iteration=iteration, steps=batches, backwards=batches, forwards=batches)
        iteration += 1
        emit("iter_begin", loader=1, epoch=epoch, iteration=iteration)
        for value, size in ((1.0, 30), (4.0, 10)):
            emit("loss", step=step, fn="cross_entropy", value=value, grad=epoch > 0, n=size)
        emit("iter_end", loader=1, iteration=iteration, steps=0, backwards=0, forwards=2)
        emit("save", path="runs/1/last.pt", step=step)
    emit("load", path="runs/1/last.pt", step=step)
    return events


def size(picture: bytes) -> tuple[int, int]:
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", picture[16:24])


def test_a_run_has_curves_and_a_timeline_and_says_what_they_show() -> None:
    section = run_section(Record(a_run()))
    curves, timeline = section.pictures
    for picture in (curves, timeline):
        assert size(picture.png)[0] == 9 * 150
        assert picture.caption
    assert "loss, learning rate, gradient norm, gradient norm by layer" in curves.alt
    assert timeline.alt == "Timeline: 4 passes over train, 4 passes over eval; checkpoints last.pt."
    assert section.facts["Optimizer"] == "12 steps in 4 epochs"
    assert section.facts["Training loss"] == "2 at first, 0.167 at the end (cross_entropy)"
    assert section.facts["Learning rate"] == "0.1 at first, 0.0125 at the end"
    assert section.facts["Checkpoints"] == "last.pt 4 times"
    assert "cut to 3 batches" in section.paragraphs[0]


def test_an_evaluation_is_a_weighted_mean_and_never_a_training_loss() -> None:
    """Also where the script forgot `torch.no_grad()`: a pass without a backward is an evaluation."""
    story = read_story(Record(a_run()))
    assert list(story.eval) == ["eval"]
    positions, values = story.eval["eval"]
    assert positions == [3, 6, 9, 12]
    assert values == pytest.approx([1.75] * 4)
    assert story.train["cross_entropy"] == (list(range(1, 13)), pytest.approx([2.0 / step for step in range(1, 13)]))


def test_validation_and_test_data_are_two_curves() -> None:
    events = a_run()
    events += [
        {"kind": "iter_begin", "loader": 2, "iteration": 99, "t": 90},
        {"kind": "loss", "step": 12, "fn": "cross_entropy", "value": 3.0, "grad": False},
        {"kind": "iter_end", "loader": 2, "iteration": 99, "forwards": 1, "steps": 0, "backwards": 0, "t": 91},
    ]
    story = read_story(Record(events))
    assert story.eval["eval 2"] == ([12], [3.0])
    assert story.eval["eval"][0][-1] == 12
    assert story.bars[-1] == ("eval 2", 90, 91)


def test_accumulated_batches_are_one_point() -> None:
    events: list[Event] = []
    for step in range(3):
        events += [{"kind": "loss", "phase": "train", "fn": "mse_loss", "value": value} for value in (1.0, 3.0)]
        events.append({"kind": "step", "n": step + 1, "lrs": [0.1]})
    assert read_story(Record(events)).train == {"mse_loss": ([1, 2, 3], [2.0, 2.0, 2.0])}


def test_a_loss_of_ones_own_is_read_where_backward_is_called() -> None:
    events = [{"kind": "backward", "step": step, "value": 1.0 - step / 10} for step in range(3)]
    assert read_story(Record([*events])).train == {"loss": ([1, 2, 3], [1.0, 0.9, 0.8])}


def test_phases_that_the_record_names_are_the_timeline() -> None:
    events = [
        {"kind": "phase", "phase": "train", "epoch": 0, "begin": 0.0, "end": 2.0, "batches": 3, "loader": 0},
        {"kind": "phase", "phase": "test", "epoch": 0, "begin": 2.0, "end": 2.5, "batches": 3, "loader": 1},
        {"kind": "phase", "phase": "eval", "begin": None},
    ]
    (picture,) = run_section(Record(events)).pictures
    assert picture.alt == "Timeline: 1 pass over train, 1 pass over test; checkpoints none."


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"kind": "run", "train_batches": None}],
        [{"kind": "step"}],
        [{"kind": "loss"}, {"kind": "loss", "value": None}],
        [{"kind": "loss", "value": "nan"}, {"kind": "loss", "value": float("inf"), "phase": "eval"}],
        [{"kind": "step", "n": 1, "lrs": [None, "nan", 0.0], "grad_norm": "inf"}],
        [{"kind": "step", "n": 1, "lrs": [0.0]}, {"kind": "step", "n": 2, "lrs": [0.0]}],
        [{"kind": "grad_norms"}, {"kind": "grad_norms", "step": 1, "norms": {}}],
        [{"kind": "grad_norms", "step": 1, "norms": {"weight": 0.0}}],
        [{"kind": "grad_norms", "step": 1, "norms": {"a.weight": "nan", "b.weight": None}}],
        [{"kind": "iter_begin", "iteration": 1}, {"kind": "iter_end", "iteration": 1, "steps": 1}],
        [{"kind": "iter_end", "iteration": 7, "forwards": 1, "t": 3.0}],
        [{"kind": "phase", "phase": None, "begin": 1.0, "end": 1.0}],
        [{"kind": "save"}, {"kind": "load", "path": None, "t": 1.0}],
        [{"kind": "batch_picture"}, {"kind": "batch_picture", "role": "train", "png_base64": "not base64!"}],
        [{"kind": "batch_picture", "role": "eval", "png_base64": base64.b64encode(b"no picture").decode()}],
    ],
)
def test_whatever_is_missing_leaves_a_gap_and_no_error(events: list[Event]) -> None:
    section = run_section(Record(events))
    assert section.title == "The run"
    assert section.paragraphs
    for picture in section.pictures:
        assert size(picture.png)


def test_nothing_recorded_is_said() -> None:
    section = run_section(Record([]))
    assert section.pictures == []
    assert section.paragraphs == ["The run took no step that could be drawn."]


@pytest.mark.parametrize("kinds", [("step",), ("loss",), ("grad_norms",), ("iter_begin", "iter_end"), ("save", "load")])
def test_a_record_without_some_kinds_is_still_drawn(kinds: tuple[str, ...]) -> None:
    events = [event for event in a_run() if event["kind"] not in kinds]
    assert run_section(Record(events)).pictures


def test_first_batches_are_side_by_side_training_first() -> None:
    def picture(role: str, width: int) -> Event:
        return {"kind": "batch_picture", "role": role, "png_base64": base64.b64encode(png(width, 20)).decode()}

    events = [picture("eval", 40), picture("train", 40), picture("train", 80)]
    (shown,) = run_section(Record(events)).pictures
    assert shown.alt == "Images of the first batch: train, eval."
    (alone,) = run_section(Record(events[:1])).pictures
    assert size(alone.png)[0] * 2 == size(shown.png)[0]


def test_a_large_run_stays_readable() -> None:
    """A network of a hundred layers under a prefix, losses that overflow, fast-forward, two groups that differ."""
    random.seed(0)
    events = a_run(epochs=100)
    names = [f"module.blocks.{block}.{part}.weight" for block in range(24) for part in ("norm", "attn", "mlp")]
    for event in events:
        if event["kind"] == "grad_norms":
            event["norms"] = {name: random.lognormvariate(-3, 2) for name in names}
        elif event["kind"] == "step":
            event |= {"lrs": [0.1, 0.1, 0.01], "fast": event["n"] > 200}
        elif event["kind"] == "loss" and event["grad"]:
            event["value"] = "nan" if event["step"] % 50 == 7 else math.exp(-event["step"] / 40)
    section = run_section(Record(events))
    assert section.facts["Optimizer"] == "300 steps in 100 epochs, only counted from step 201 on"
    height = size(section.pictures[0].png)[1]
    assert height < 15 * 150
    assert "grey" in section.pictures[0].caption


def test_the_section_becomes_part_of_a_page_that_loads_nothing() -> None:
    report = Report(target="python train.py", checks=[Check(code="A1", name="a", status=Status.PASS)])
    source = render_html(report, "kit watch", [run_section(Record(a_run()))])
    assert source.count("data:image/png;base64,") == 2
    assert "http:" not in source
    assert "https:" not in source


def test_reading_a_record_needs_no_matplotlib() -> None:
    import subprocess
    import sys

    script = (
        "import sys; from verify.curves import read_story; from verify.trace.record import Record\n"
        "read_story(Record([])); sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
