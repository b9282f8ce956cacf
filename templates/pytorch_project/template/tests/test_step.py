import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from records import last, metrics
from torch import nn, optim

import train
from engine.accumulate import Window
from engine.config import load_config
from engine.device import Compute
from engine.progress import Progress
from engine.run import Run
from engine.step import Step

LATER = Compute(torch.device("cpu"), reads_at_once=False)


def windows(*batches):
    """A window for each of the batches (images, labels)."""
    return [Window(iter([batch]), [len(batch[1])]) for batch in batches]


def batch(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(8, 4, generator=generator), torch.arange(8) % 3


def make_step(compute, limit=1.0, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return Step(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options), limit, compute)


def test_results_that_are_read_late_are_the_same():
    at_once, late = make_step(Compute(torch.device("cpu"))), make_step(LATER, fused=True)
    expected = []
    for seed in range(5):
        at_once(*windows(batch(seed)))
        expected += at_once.read()
        late(*windows(batch(seed)))
    found = list(late.read())
    assert [result.batches[0] for result in found] == [pytest.approx(result.batches[0]) for result in expected]
    assert list(late.read()) == []
    torch.testing.assert_close(at_once.model.weight, late.model.weight)


def test_whole_training_is_the_same_when_results_are_read_late(run_train, monkeypatch):
    settings = ["--set", "optimizer=sgd", "log_every=3", "accumulation_steps=2"]
    assert run_train(*settings) == 0
    expected = metrics("train"), metrics("epoch")
    monkeypatch.setattr(train, "choose_compute", lambda config: Compute(torch.device(config.device), "fp32", "", False))
    shutil.rmtree("runs")
    assert run_train("--fresh", *settings) == 0
    for found, wanted in zip((metrics("train"), metrics("epoch")), expected, strict=True):
        assert [line["step"] for line in found] == [line["step"] for line in wanted]
        assert [line["lr"] for line in found] == [line["lr"] for line in wanted]
    losses = [[line["train_loss"] for line in lines] for lines in (metrics("epoch"), expected[1])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("compute", [Compute(torch.device("cpu")), LATER], ids=["at-once", "late"])
def test_weights_are_left_alone_from_the_first_update_that_is_not_finite(compute):
    step = make_step(compute, fused=True)
    step(*windows(batch(0)))
    weights = step.model.weight.clone()
    images, labels = batch(1)
    for given in (images / 0, images)[: 1 if compute.reads_at_once else 2]:
        step(*windows((given, labels)))
    results = list(step.read())
    assert torch.equal(step.model.weight, weights)
    assert [result.failed_at for result in results][:2] == [None, 0]


def test_a_window_says_which_of_its_batches_failed():
    step = make_step(LATER, fused=True)
    good, bad = batch(0), (batch(1)[0] / 0, batch(1)[1])
    step(Window(itertools.chain([good, bad, good]), [8, 8, 8]))
    (result,) = step.read()
    assert result.failed_at == 1
    assert [images for _, _, images in result.batches] == [8, 8, 8]


def test_results_wait_until_the_batch_that_is_logged():
    step = make_step(LATER, fused=True)
    waits = []
    for number in range(4):
        step(*windows(batch(number)))
        waits.append(step.has_room(7, log_every=10))
    assert waits == [True, True, False, False]


def test_half_precision_leaves_steps_out_and_goes_on():
    step = make_step(replace(LATER, precision="fp16"))
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    weights = step.model.weight.clone()
    step(*windows(batch(0)))
    assert torch.equal(step.model.weight, weights)
    for seed in range(40):
        step(*windows(batch(seed)))
    assert not torch.equal(step.model.weight, weights)
    assert not [result for result in step.read() if result.failed_at is not None]


def test_a_gradient_that_overflowed_is_logged_as_null(project):
    config = load_config(Path("config.yaml"), [])
    with Run("overflowed", config, Progress(), total_steps=1) as run:
        run.log("train", step=1, grad_norm=math.inf, loss=0.5)
    (line,) = (project / "runs/overflowed/metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["grad_norm"] is None


def test_bfloat16_trains_on_the_cpu(run_train):
    assert run_train("--set", "precision=bf16", "epochs=1") == 0
    assert all(p.dtype == torch.float32 for p in last()["model"].values() if p.is_floating_point())


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_a_precision_for_cuda_is_refused_on_the_cpu(run_train, capsys, precision):
    assert run_train("--set", f"precision={precision}") == 2
    assert f"precision {precision} is for CUDA" in capsys.readouterr().err
