"""What frameworks do in their own way: checkpoints by way of a buffer, evaluation before training, eval mode kept."""

from __future__ import annotations

from pathlib import Path

from tests.verify.trace.runs import TRAIN, watched
from verify.report import Status
from verify.watch import judge

# As Lightning does: a callback with a monitor saves into memory, and the bytes are written to a path.
BY_BUFFER = (
    TRAIN
    + """
import io

class ModelCheckpoint:
    monitor = "val_acc"

    def save(self, filepath):
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        with open(filepath, "wb") as file:
            file.write(buffer.getvalue())

train()
ModelCheckpoint().save("epoch=1.ckpt")
notes = io.BytesIO()
torch.save({"step": 1}, notes)
"""
)


def test_a_checkpoint_that_is_written_by_way_of_a_buffer_is_seen(tmp_path: Path) -> None:
    saves = watched(tmp_path, BY_BUFFER).of("save")
    assert [(save["path"], save["best"]) for save in saves] == [("epoch=1.ckpt", True)]


# Only the first pass is in train mode; the later ones are trained on in eval mode, with gradients.
IN_EVAL_MODE = """
import torch
from torch import nn

torch.manual_seed(0)
x, y = torch.randn(64, 4), torch.randint(2, (64,))
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)
for epoch in range(4):
    {each}
    for a, b in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
    model.eval()
    saliency = model(x.clone().requires_grad_())
"""


def test_training_in_eval_mode_is_training(tmp_path: Path) -> None:
    report = judge(watched(tmp_path / "bug", IN_EVAL_MODE.format(each="")), ["TRN407"])
    assert [check.status for check in report.checks] == [Status.FAIL]


def test_a_forward_pass_with_gradients_in_eval_mode_is_not(tmp_path: Path) -> None:
    record = watched(tmp_path / "healthy", IN_EVAL_MODE.format(each="model.train()"))
    assert [check.status for check in judge(record, ["TRN407"]).checks] == [Status.PASS]
    assert len([p for p in record.of("pass") if p["trained"]]) == 16
