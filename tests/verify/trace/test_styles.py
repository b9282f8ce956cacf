"""Healthy programs of other styles: each would be mistaken for a bug by a rule that knows only the usual loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verify.trace.runs import watched
from verify.report import Status
from verify.watch import judge

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
x = torch.randn(72, 4)
y = (x[:, 0] > 0).long()
data = TensorDataset(x[:50], y[:50])
train, val = DataLoader(data, 16, shuffle=True), DataLoader(TensorDataset(x[50:], y[50:]), 16)
def net(outputs=2):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))
"""
DISTILLED = """
def fit(model, loss, epochs=2):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(epochs):
        for a, b in train:
            optimizer.zero_grad()
            loss(model(a), a, b).backward()
            optimizer.step()
teacher, student = net(), net()
fit(teacher, lambda z, a, b: F.cross_entropy(z, b))
teacher.requires_grad_(False)
fit(student, lambda z, a, b: F.kl_div(z.log_softmax(1), teacher(a).softmax(1), reduction="batchmean"))
"""
TWO_LOSSES_A_STEP = """
critic, maker = net(1), nn.Linear(3, 4)
of_critic, of_maker = torch.optim.Adam(critic.parameters(), 1e-3), torch.optim.Adam(maker.parameters(), 1e-3)
for epoch in range(3):
    for a, _ in train:
        of_critic.zero_grad()
        F.binary_cross_entropy_with_logits(critic(a)[:, 0], torch.ones(len(a))).backward()
        made = maker(torch.randn(len(a), 3))
        F.binary_cross_entropy_with_logits(critic(made.detach())[:, 0], torch.zeros(len(a))).backward()
        of_critic.step()
        of_maker.zero_grad()
        F.binary_cross_entropy_with_logits(critic(made)[:, 0], torch.ones(len(a))).backward()
        of_maker.step()
"""
SUM_OF_TASKS = """
model = net(3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for epoch in range(3):
    for a, b in train:
        optimizer.zero_grad()
        z = model(a)
        losses = torch.stack([F.cross_entropy(z[:, :2], b), F.mse_loss(z[:, 2], a[:, 1])])
        losses.sum().backward()
        optimizer.step()
"""
FASTAI = """
class Learner:
    def __init__(self):
        self.model = net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
    def batch(self, a, b, training):
        self.pred = self.model(a)
        self.loss = F.cross_entropy(self.pred, b)
        if training:
            self.loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
    def fit(self, epochs):
        for epoch in range(epochs):
            self.model.train()
            for a, b in train:
                self.batch(a, b, True)
            self.model.eval()
            self.summed, self.seen = 0.0, 0
            with torch.no_grad():
                for a, b in val:
                    self.batch(a, b, False)
                    self.summed += self.loss.item() * len(b)
                    self.seen += len(b)
            print(f"{epoch} valid {self.summed / self.seen:.4f}")
Learner().fit(3)
"""
FUNCTIONAL = """
from torch.func import functional_call, grad
model = net()
parameters = {k: v.detach() for k, v in model.named_parameters()}
slope = grad(lambda p, a, b: F.cross_entropy(functional_call(model, p, (a,)), b))
for epoch in range(3):
    for a, b in train:
        gradients = slope(parameters, a, b)
        parameters = {k: v - 0.1 * gradients[k] for k, v in parameters.items()}
"""


LOSS_INSIDE = """
class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()
    def forward(self, a, labels):
        logits = self.body(a)
        return {"logits": logits, "loss": F.cross_entropy(logits, labels)}
model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
for epoch in range(3):
    for number, (a, b) in enumerate(train):
        (model(a, b)["loss"] / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
"""
RATE_BY_HAND = FASTAI.replace(
    "for epoch in range(epochs):",
    """for epoch in range(epochs):
            for group in self.optimizer.param_groups:
                group["lr"] = 0.1 / (epoch + 1)""",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("TRN410", LOSS_INSIDE),
        ("OPT713", RATE_BY_HAND),
        ("OPT703", DISTILLED),
        ("TRN410", TWO_LOSSES_A_STEP),
        ("LOS904", SUM_OF_TASKS),
        ("EVL604", FASTAI),
    ],
    ids=["loss-inside", "rate-by-hand", "distilled", "two-losses-a-step", "sum-of-tasks", "learner"],
)
def test_a_healthy_program_of_another_style_passes(tmp_path: Path, code: str, text: str) -> None:
    report = judge(watched(tmp_path, HEAD + text), [code])
    assert [check.status for check in report.checks if check.status not in (Status.PASS, Status.SKIP)] == []


SUMMED_OVER_SAMPLES = SUM_OF_TASKS.replace(
    "losses = torch.stack([F.cross_entropy(z[:, :2], b), F.mse_loss(z[:, 2], a[:, 1])])",
    'losses = F.cross_entropy(z, b, reduction="none")',
)
PRINTS_THE_LAST_BATCH = FASTAI.replace("{self.summed / self.seen:.4f}", "{self.loss.item():.5f}")


PRINTS_A_SUM = FASTAI.replace("self.summed / self.seen", "self.summed / len(val)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("LOS904", SUMMED_OVER_SAMPLES),
        ("EVL604", PRINTS_THE_LAST_BATCH),
        ("EVL604", PRINTS_A_SUM.replace("valid ", "valid loss ")),
        ("TRN410", LOSS_INSIDE.replace('["loss"] / 2', '["loss"]')),
        ("LOS901", LOSS_INSIDE.replace("F.cross_entropy(logits", "F.cross_entropy(logits.softmax(1)")),
        ("OPT713", RATE_BY_HAND.replace('["lr"]', '["learning_rate"]')),
    ],
)
def test_the_bug_that_looks_alike_is_found(tmp_path: Path, code: str, text: str) -> None:
    report = judge(watched(tmp_path, HEAD + text), [code])
    assert [check.status for check in report.checks if check.status not in (Status.PASS, Status.SKIP)] != []


def test_functional_training_is_no_pass_and_is_called_by_its_name(tmp_path: Path) -> None:
    report = judge(watched(tmp_path, HEAD + FUNCTIONAL))
    (check,) = [check for check in report.checks if check.status is Status.ERROR]
    assert (check.code, report.exit_code) == ("RUN074", 2)
    assert "torch.func" in check.measured


FINISHED_OPTIMIZER = (
    DISTILLED
    + """
first = torch.optim.SGD(teacher.requires_grad_(True).parameters(), 0.1)
for a, b in train:
    F.cross_entropy(teacher(a), b).backward()
    first.step()
second = torch.optim.SGD(student.parameters(), 0.1)
scheduler = torch.optim.lr_scheduler.StepLR({chosen}, 1)
for epoch in range(4):
    for a, b in train:
        second.zero_grad()
        F.cross_entropy(student(a), b).backward()
        second.step()
    scheduler.step()
"""
)


@pytest.mark.parametrize(("chosen", "statuses"), [("first", [Status.FAIL]), ("second", [Status.PASS])])
def test_a_schedule_of_a_finished_optimizer(tmp_path: Path, chosen: str, statuses: list[Status]) -> None:
    report = judge(watched(tmp_path, HEAD + FINISHED_OPTIMIZER.replace("{chosen}", chosen)), ["LRS804"])
    assert [check.status for check in report.checks] == statuses
