"""Metrics of two stages, folds and splits that are not kept apart: planted bugs and look-alikes."""

import pytest

from verify.rules.kept_apart import metric_of_two_stages, model_of_all_folds, scaled_by_each_stage, test_split_unused
from verify.trace.record import Record

test_split_unused.__test__ = False  # a rule, though its name begins like a test

METRICS = """\
import lightning as L
import torch
import torchmetrics
class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)
        self.val_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)
    def training_step(self, batch, i):
        self.acc(self(batch[0]), batch[1])
    def validation_step(self, batch, i):
        VALIDATE
        self.log("val/acc", self.acc)
"""
LOADERS = """\
import torch
from torch.utils.data import DataLoader, random_split
class Data:
    def setup(self, stage):
        self.val_set, self.test_set = random_split(data, [10, 10])
    def val_dataloader(self):
        return DataLoader(self.val_set)
    def test_dataloader(self):
        return DataLoader(TEST)
"""
FOLDS = """\
import copy
import torch
from sklearn.model_selection import KFold
folds = KFold(5)
model = Net()
start = copy.deepcopy(model.state_dict())
for fold, (train, val) in enumerate(folds.split(x)):
    FIRST
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    fit(model, optimizer)
    model.load_state_dict(torch.load("best.pt"))
"""


def found(rule, text: str) -> int:
    return len(list(rule(Record([{"kind": "source", "path": "train.py", "text": text}]))))


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("self.acc(self(batch[0]), batch[1])", 1),
        ("self.acc.update(self(batch[0]), batch[1])", 1),
        ("self.val_acc(self(batch[0]), batch[1])", 0),
        ("print(self.acc.compute())", 0),
        ("self.acc(self(batch[0]), batch[1])\n    def on_validation_start(self):\n        self.acc.reset()", 0),
    ],
)
def test_a_metric_of_two_stages(line: str, count: int) -> None:
    assert found(metric_of_two_stages, METRICS.replace("VALIDATE", line)) == count


def test_values_of_batches_are_no_metric_of_two_stages() -> None:
    by_value = METRICS.replace("VALIDATE", "acc = self.acc(self(batch[0]), batch[1])").replace(", self.acc)", ", acc)")
    assert found(metric_of_two_stages, by_value) == 0
    computed = by_value + "    def on_validation_epoch_end(self):\n        self.log('val', self.acc.compute())\n"
    assert found(metric_of_two_stages, computed) == 1


def test_a_test_split_that_nobody_reads() -> None:
    assert found(test_split_unused, LOADERS.replace("TEST", "self.val_set")) == 1
    assert found(test_split_unused, LOADERS.replace("TEST", "self.test_set")) == 0
    one_for_both = LOADERS.replace("TEST", "self.val_set").replace("self.val_set, self.test_set =", "self.val_set, _ =")
    assert found(test_split_unused, one_for_both) == 0
    plain = "import torch\nfrom torch.utils.data import DataLoader\ntest_ds = Digits('test')\n"
    assert found(test_split_unused, plain + "test_loader = DataLoader(val_ds)\n") == 1
    assert found(test_split_unused, plain + "test_loader = DataLoader(val_ds)\nprint(len(test_ds))\n") == 0


def test_a_model_of_all_folds() -> None:
    assert found(model_of_all_folds, FOLDS.replace("FIRST", "seed(fold)")) == 1
    for line in ("model = Net()", "model.load_state_dict(start)", "reset_weights(model)", "model.apply(init)"):
        assert found(model_of_all_folds, FOLDS.replace("FIRST", line)) == 0
    assert found(model_of_all_folds, FOLDS.replace("FIRST", "seed(fold)") + "    break\n") == 0
    groups = "groups = [{'params': list(model.head.parameters())}]"
    by_group = FOLDS.replace("FIRST", groups).replace("AdamW(model.parameters(),", "AdamW(groups,")
    assert found(model_of_all_folds, by_group) == 1
    called = FOLDS.replace("FIRST", "train_fold(model, train)").replace("    optimizer =", "    other =")
    called = called.replace("AdamW(model.parameters(), lr=0.1)", "Adam(net.parameters())")
    trains = "def train_fold(net, rows):\n    LINE\n    optimizer = torch.optim.Adam(net.parameters())\n"
    assert found(model_of_all_folds, called + trains.replace("LINE", "net.train()")) == 1
    assert found(model_of_all_folds, called + trains.replace("LINE", "net = copy.deepcopy(net)")) == 0
    in_function = FOLDS.replace("model = Net()\n", "").replace("FIRST", "model = Net()")
    assert found(model_of_all_folds, in_function) == 0


SETUP = """\
import lightning as L
import torch
class Data(L.LightningDataModule):
    def setup(self, stage=None):
        if self.raw is None:
            self._load()
        LINE
        self.train_set = Images(self.raw)
trainer.fit(model, datamodule=data)
trainer.test(model, datamodule=data)
"""


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("self.raw = (self.raw - self.mean) / self.std", 1),
        ("self.raw /= 255", 1),
        ("x = (self.raw - self.mean) / self.std", 0),
        ("self.x = (self.raw - self.mean) / self.std", 0),
        ("self.raw = load()\n        self.raw = self.raw / 255", 0),
        ("self.load()\n        self.raw = self.raw / 255", 0),
        ("if stage == 'fit':\n            self.raw = self.raw / 255", 0),
        ("self.count = self.count + 1", 0),
    ],
)
def test_scaled_by_each_stage(line: str, count: int) -> None:
    assert found(scaled_by_each_stage, SETUP.replace("LINE", line)) == count
