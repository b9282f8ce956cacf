"""pytest-torch: a generated suite for a model, and its training assertions for a program's own step."""

from __future__ import annotations

import re
from pathlib import Path

from cases import Case
from harness import LOSS

NAME = "pytest-torch"
PACKAGES = ["pytest-torch==1.1.1"]
CLAIMS = (
    "models at inference, checkpoints, resuming, accumulation, coverage by the optimizer, short training, deployment. "
    "Not data, schedules, metrics or scripts as they are: a test calls the functions of a project."
)
COMMANDS = ["pytest test_net.py", "pytest test_train.py"]
MODEL = f"""import torch
from torch.nn import functional as F
from pytest_torch import ModelSuite
from net import Net
{LOSS}
class TestNet(ModelSuite):
    checks = ("contract", "checkpoint", "layouts", "training")

    def make_model(self):
        return Net()

    def make_inputs(self, make_tensor):
        return make_tensor(8, 3, SIDE, SIDE)

    def loss(self, output, inputs):
        return loss_fn(output, torch.arange(8) % 5)
"""
PROGRAMS = {
    "argparse_script": """import torch
from torch import nn
from torch.utils.data import DataLoader
from pytest_torch import ModelSuite, TrainingSetup, assert_resume_equivalent, check_inference_contract, run_training
import train
criterion = nn.CrossEntropyLoss()
torch.manual_seed(0)
batches = list(DataLoader(train.build_datasets(augment=True)[0], batch_size=64, shuffle=True))[:4]

def make_setup():
    model = train.CNN(num_classes=10, dropout=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    return TrainingSetup(model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20))

def step(setup, batch):
    loss, _ = train.train_one_epoch(setup.model, [batch], criterion, setup.optimizer, "cpu")
    setup.scheduler.step()
    return torch.tensor(loss)

def test_training():
    run_training(make_setup, batches, step, steps=20).assert_healthy(min_relative_decrease=0.1)

def test_resume():
    assert_resume_equivalent(make_setup, batches, step)

def test_inference_after_evaluation():
    model = make_setup().model
    train.evaluate(model, batches[:1], criterion, "cpu")
    check_inference_contract(model, batches[0][0])

class TestModel(ModelSuite):
    checks = ("contract", "checkpoint", "layouts", "training")

    def make_model(self):
        return train.CNN(num_classes=10, dropout=0.2)

    def make_inputs(self, make_tensor):
        return batches[0][0]

    def loss(self, output, inputs):
        return criterion(output, batches[0][1])
""",
    "functional_loop": """import torch
from torch import nn
from pytest_torch import ModelSuite, TrainingSetup, assert_resume_equivalent, check_inference_contract, run_training
import train
criterion = nn.CrossEntropyLoss()
(x, y), _, _ = train.load_data()

def make_setup():
    model = train.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    return TrainingSetup(model, optimizer)

def step(setup, batch):
    return torch.tensor(train.train_epoch(setup.model, batch, criterion, setup.optimizer))

def test_training():
    run_training(make_setup, (x[:200], y[:200]), step, steps=20).assert_healthy(min_relative_decrease=0.1)

def test_resume():
    assert_resume_equivalent(make_setup, (x[:200], y[:200]), step)

def test_inference_after_evaluation():
    model = make_setup().model
    train.evaluate(model, (x[:50], y[:50]), criterion)
    check_inference_contract(model, x[:50])

class TestModel(ModelSuite):
    checks = ("contract", "checkpoint", "layouts", "training")

    def make_model(self):
        return train.build_model()

    def make_inputs(self, make_tensor):
        return x[:50]

    def loss(self, output, inputs):
        return criterion(output, y[:50])
""",
    "notebook_module": """import torch
from torch.nn import functional as F
from pytest_torch import ModelSuite, TrainingSetup, assert_optimizer_coverage, assert_resume_equivalent, run_training
import train
batches = list(train.train_dl)[:4]

def make_setup():
    model = train.Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=train.MAX_LR)
    return TrainingSetup(model, optimizer)

def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])

def test_coverage():
    assert_optimizer_coverage(train.model, train.opt)

def test_training():
    run_training(make_setup, batches, loss_fn=loss_fn, steps=20).assert_healthy(min_relative_decrease=0.1)

def test_resume():
    assert_resume_equivalent(make_setup, batches, loss_fn=loss_fn)

class TestModel(ModelSuite):
    checks = ("contract", "checkpoint", "layouts", "training")

    def make_model(self):
        return train.Net()

    def make_inputs(self, make_tensor):
        return batches[0][0]

    def loss(self, output, inputs):
        return F.cross_entropy(output, batches[0][1])
""",
}
PYTEST = ["-m", "pytest", "-q", "-rfE", "--tb=line", "--rootdir=.", "-p", "no:cacheprovider"]


def model_job(case: Case, folder: Path) -> list[str]:
    """Write the harness of a model; the command that runs it."""
    (folder / "test_net.py").write_text(MODEL.replace("SIDE", str(case.side)))
    return [*PYTEST, "test_net.py"]


def program_job(case: Case, folder: Path) -> list[str]:
    """Write the harness of a program; the command that runs it."""
    (folder / "test_train.py").write_text(PROGRAMS[case.program])
    return [*PYTEST, "test_train.py"]


def findings(output: str, exit_code: int) -> set[str]:
    """Names of the tests that failed."""
    found = set(re.findall(r"^(?:FAILED|ERROR) \S*?(?:::(\w+))?(?:\[\S*)?(?: - |$)", output, re.M))
    return {name or "collection" for name in found} | ({"crash"} if exit_code and not found else set())
