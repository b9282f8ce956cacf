"""torchtest2: `check_model` on one batch, as its README has it."""

from __future__ import annotations

import re
from pathlib import Path

from cases import Case
from harness import LOSS, TENSORS

NAME = "torchtest2"
PACKAGES = ["torchtest2==0.1.0"]
CLAIMS = "models: 18 checks of one model on one batch. Not data, loops, schedules, evaluation or checkpoints."
COMMANDS = ["python check.py"]
MODEL = f"""import torch
from torch.nn import functional as F
from torchtest2 import check_model
from net import Net
{LOSS}{TENSORS}
model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
print(check_model(model, inputs, targets, loss_fn=loss_fn, optimizer=optimizer))
"""
PROGRAMS = {
    "argparse_script": """import torch
from torch import nn
from torch.utils.data import DataLoader
from torchtest2 import check_model
import train
train_set, _, _ = train.build_datasets(augment=True)
inputs, targets = next(iter(DataLoader(train_set, batch_size=64, shuffle=True)))
model = train.CNN(num_classes=10, dropout=0.2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
print(check_model(model, inputs, targets, loss_fn=nn.CrossEntropyLoss(), optimizer=optimizer))
""",
    "functional_loop": """import torch
from torch import nn
from torchtest2 import check_model
import train
(x, y), _, _ = train.load_data()
model = train.build_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
print(check_model(model, x[:50], y[:50], loss_fn=nn.CrossEntropyLoss(), optimizer=optimizer))
""",
    "notebook_module": """import torch
from torch.nn import functional as F
from torchtest2 import check_model
import train
inputs, targets = next(iter(train.train_dl))
model = train.Net()
optimizer = torch.optim.Adam(model.parameters(), lr=train.MAX_LR)
print(check_model(model, inputs, targets, loss_fn=F.cross_entropy, optimizer=optimizer))
""",
}


def model_job(case: Case, folder: Path) -> list[str]:
    """Write the harness of a model; the command that runs it."""
    (folder / "check.py").write_text(MODEL.replace("SIDE", str(case.side)))
    return ["check.py"]


def program_job(case: Case, folder: Path) -> list[str]:
    """Write the harness of a program; the command that runs it."""
    (folder / "check.py").write_text(PROGRAMS[case.program])
    return ["check.py"]


def findings(output: str, exit_code: int) -> set[str]:
    """Names of the checks that failed or warned."""
    found = set(re.findall(r"^\s+(?:FAIL|WARN)\s+(\w+)", output, re.M))
    return found | ({"crash"} if exit_code and not found else set())
