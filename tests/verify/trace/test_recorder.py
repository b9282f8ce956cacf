"""Recording changes no number, and the time-lapse keeps the shape of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.verify.trace.runs import TRAIN, watched
from verify.trace.record import Record

# Every loader is shorter than the cut, so that watched and plain runs see the same batches.
SAME_NUMBERS = '''
import random
import sys
from pathlib import Path
import numpy
import torch
from torch import nn
from torch.utils.data import (BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler,
                              TensorDataset, WeightedRandomSampler, get_worker_info)


class Draws(Dataset):
    """Draws from every generator that there is, and from two of its own."""

    def __init__(self):
        self.own, self.private, self.calls = numpy.random.default_rng(5), random.Random(7), 0
        self.tensors = torch.Generator().manual_seed(9)

    def __len__(self):
        return 14

    def __getitem__(self, index):
        self.calls += 1
        noise = torch.randn(4) + torch.tensor([random.random(), numpy.random.rand(), self.own.random(), index])
        noise[0] += self.private.random() + torch.rand(1, generator=self.tensors).item() + self.calls
        return noise.float(), index % 2


class Stream(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        start, step = (info.id, info.num_workers) if info else (0, 1)
        for number in range(start, 11, step):
            yield torch.randn(4) + number, number % 2


class Range(IterableDataset):
    """As in PyTorch's own example: worker_init_fn gives each worker its part."""

    def __init__(self, start, end):
        self.start, self.end = start, end

    def __iter__(self):
        return iter([(torch.full((4,), float(n)), n % 2) for n in range(self.start, self.end)])


def part(worker):
    info = get_worker_info()
    size = -(-(info.dataset.end - info.dataset.start) // info.num_workers)
    start = info.dataset.start + worker * size
    info.dataset.start, info.dataset.end = start, min(start + size, info.dataset.end)


def seed(worker):
    numpy.random.seed(torch.initial_seed() % 2**32)
    random.seed(worker)


class Lazy(torch.utils.data.Sampler):
    """Draws from the global generator, one index at a time."""

    def __iter__(self):
        for _ in range(12):
            yield int(torch.randint(0, 14, ()))

    def __len__(self):
        return 12


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
plain = TensorDataset(torch.randn(14, 4), torch.randint(0, 2, (14,)))


def run(name, loader, epochs=2):
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    for epoch in range(epochs):
        for step, (x, y) in enumerate(loader):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            count = len(loader) if name not in ("stream", "range") else ""
            print(name, epoch, step, repr(loss.item()), count, file=said)
    print(name, "after", repr(torch.rand(1).item()), repr(random.random()), repr(numpy.random.rand()), file=said)


if __name__ == "__main__":
    said = open(sys.argv[1], "w")
    generator = torch.Generator().manual_seed(3)
    weights = torch.arange(1.0, 15.0)
    run("plain", DataLoader(plain, batch_size=4, shuffle=True))
    run("drop_last", DataLoader(plain, batch_size=4, shuffle=True, drop_last=True))
    run("no_workers", DataLoader(Draws(), batch_size=4, shuffle=True))
    run("generator", DataLoader(Draws(), batch_size=4, shuffle=True, generator=generator))
    run("sampler", DataLoader(plain, batch_size=4, sampler=RandomSampler(plain, generator=generator)))
    run("replacement", DataLoader(plain, batch_size=4, sampler=RandomSampler(plain, replacement=True, num_samples=10)))
    run("weighted", DataLoader(plain, batch_size=4, sampler=WeightedRandomSampler(weights, 14)))
    run("batch_sampler", DataLoader(plain, batch_sampler=BatchSampler(RandomSampler(plain), 4, False)))
    run("workers", DataLoader(Draws(), batch_size=4, shuffle=True, num_workers=2), 3)
    run("worker_init", DataLoader(Draws(), batch_size=4, shuffle=True, num_workers=2, worker_init_fn=seed))
    run("persistent", DataLoader(Draws(), batch_size=4, num_workers=2, persistent_workers=True, shuffle=True), 3)
    run("lazy", DataLoader(Draws(), batch_size=3, sampler=Lazy(), num_workers=2))
    run("stream", DataLoader(Stream(), batch_size=3, num_workers=2))
    run("range", DataLoader(Range(0, 11), batch_size=3, num_workers=2, worker_init_fn=part))
'''


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[list[str], list[str], Record]:
    """The lines that a script writes when it is run as it is, and when it is watched; a free folder holds them."""
    folder, results = tmp_path_factory.mktemp("same"), tmp_path_factory.mktemp("results")
    record = watched(folder, SAME_NUMBERS, str(results / "watched"), own_process=True)
    plain = subprocess.run([sys.executable, "train.py", str(results / "plain")], cwd=folder, timeout=120)
    assert plain.returncode == record.run["code"] == 0, record.run["log"]
    return (results / "plain").read_text().splitlines(), (results / "watched").read_text().splitlines(), record


@pytest.mark.slow
def test_recording_changes_no_number(both):
    plain, seen, _ = both
    of = {name: [line for line in plain if line.startswith(name + " ")] for name in {line.split()[0] for line in plain}}
    assert len(of) == 14
    assert [name for name, lines in of.items() if lines != [s for s in seen if s.startswith(name + " ")]] == []
    assert seen == plain


@pytest.mark.slow
def test_the_recorder_saw_it_all_without_an_error_of_its_own(both):
    plain, _, record = both
    steps = sum("after" not in line for line in plain)
    assert not record.of("recorder_error", "crash")
    assert len(record.of("step")) == len(record.of("backward")) == len(record.of("loss")) == steps
    assert len(record.loaders) == 14


LAPSE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(203, 4), torch.randint(0, 2, (203,)))
loader = DataLoader(data, batch_size=10, shuffle=True)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, epochs=50, steps_per_epoch=len(loader))
cosine = torch.optim.lr_scheduler.CosineAnnealingLR(other, T_max=50)
for epoch in range(50):
    sizes = []
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        other.step()
        cycle.step()
        sizes.append(len(y))
    assert len(sizes) == len(loader) == 5, (len(sizes), len(loader))
    assert sizes == [10, 10, 10, 10, 3], sizes
    cosine.step()
    assert len(list(DataLoader(data, batch_size=10))) == 5
"""


@pytest.fixture(scope="module")
def lapse(tmp_path_factory) -> Record:
    return watched(tmp_path_factory.mktemp("lapse"), LAPSE)


def test_every_epoch_passes_and_len_agrees_with_the_batches(lapse: Record):
    assert lapse.run["code"] == 0, lapse.run["log"]
    assert lapse.ran_to_the_end
    assert len(lapse.epochs) == 50
    assert {(e.length, e.limit, e.counts["batches"], e.exhausted) for e in lapse.epochs} == {(21, 5, 5, True)}
    assert any(note.startswith("time-lapse: at most 5 batches") for note in lapse.notes)


def test_schedules_keep_their_shape(lapse: Record):
    numbers = {event["cls"]: event["id"] for event in lapse.of("scheduler")}
    cycle = [e["lrs"][0] for e in lapse.of("sched") if e["id"] == numbers["OneCycleLR"]]
    cosine = [e["lrs"][0] for e in lapse.of("sched") if e["id"] == numbers["CosineAnnealingLR"]]
    assert len(cycle) == 250
    assert max(cycle) == pytest.approx(0.1, rel=1e-3)
    assert max(range(250), key=cycle.__getitem__) == pytest.approx(0.3 * 250, abs=2)
    assert cycle[-1] < 1e-5
    assert len(cosine) == 50
    assert cosine[-1] == pytest.approx(0.0, abs=1e-9)


def test_the_planned_epochs_are_read_from_the_loop(lapse: Record):
    assert lapse.planned_epochs == 50


def test_a_traced_model_is_the_one_that_it_would_be_without_the_recorder(tmp_path):
    """As SummaryWriter.add_graph does: what we look at must not become part of the graph, or of its check."""
    text = (
        TRAIN
        + """
noisy = nn.Sequential(model, nn.Dropout(0.5))
loss = nn.CrossEntropyLoss()


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.noisy = noisy

    def forward(self, a):
        return loss(self.noisy(a), y[:8])


traced = torch.jit.trace(WithLoss().eval(), x[:8], check_trace=True)
print("nodes", len(list(traced.inlined_graph.nodes())))
meta = torch.zeros(2, 3, device="meta")
nn.functional.cross_entropy(meta, meta.argmax(dim=1))
train()
"""
    )
    record = watched(tmp_path, text)
    plain = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    nodes = [line for line in plain.stdout.splitlines() if line.startswith("nodes")]
    assert nodes
    assert nodes[0] in record.run["log"]
    assert not record.of("crash", "recorder_error")


def test_the_size_of_steps_leaves_out_weights_that_start_at_zero(tmp_path: Path) -> None:
    text = TRAIN.replace("optimizer =", "nn.init.zeros_(model[2].weight)\noptimizer =") + "train()\n"
    ratios = [step["ratio"] for step in watched(tmp_path, text).steps if step["ratio"] is not None]
    assert len(ratios) == 5
    assert max(ratios) < 0.1


THAWED = (
    TRAIN.replace("model = nn.Sequential(", "body, head = (")
    .replace("nn.ReLU(), ", "")
    .replace("model.parameters()", "[*body.parameters(), *head.parameters()]")
    .replace("optimizer =", "body.requires_grad_(False)\nsteps = 0\noptimizer =")
    .replace("model(a)", "predict(a)")
    .replace("            optimizer.step()", "            optimizer.step()\n            thaw()")
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x):
        with torch.set_grad_enabled(not frozen):
            x = self.body(x)
        return self.head(x.relu())


def thaw():
    global steps, frozen
    steps += 1
    if steps == 4:
        body.requires_grad_(True)
        frozen = FLAG


frozen, predict = True, Net()
train(6)
"""
)


@pytest.mark.parametrize(("flag", "dead"), [("True", 2), ("False", 0)])
def test_layers_that_are_unfrozen_without_their_flag(tmp_path: Path, flag: str, dead: int) -> None:
    rows = watched(tmp_path, THAWED.replace("FLAG", flag)).parameters
    assert sum(row["looks"] >= 3 and not row["graded"] for row in rows) == dead
