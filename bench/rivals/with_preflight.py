"""preflight-ml: its command line over files that hold the loaders, the model and the loss."""

from __future__ import annotations

import json
from pathlib import Path

from cases import Case
from harness import LOSS, TENSORS

NAME = "preflight-ml"
PACKAGES = ["preflight-ml==0.1.1"]
CLAIMS = (
    "data before training: NaN, leakage between train and val, range, channel order, class balance; one forward and "
    "one backward pass of a model. Says itself that it does not run the loop."
)
COMMANDS = [
    "preflight run --dataloader loader.py --model model.py --loss loss.py --format json",
    "preflight run --dataloader loader.py --model model.py --loss loss.py --format json --val-dataloader val_loader.py",
]
MODEL_FILES = {
    "loader.py": f"""import torch
from torch.utils.data import DataLoader, TensorDataset
{TENSORS}
dataloader = DataLoader(TensorDataset(inputs.repeat(4, 1, 1, 1), targets.repeat(4)), batch_size=8)
""",
    "model.py": "import torch\nfrom net import Net\ntorch.manual_seed(0)\nmodel = Net()\n",
    "loss.py": f"from torch.nn import functional as F\n{LOSS}",
}
PROGRAM_FILES = {
    "argparse_script": {
        "loader.py": """import train
from torch.utils.data import DataLoader
dataloader = DataLoader(train.build_datasets(augment=True)[0], batch_size=64, shuffle=True)
""",
        "val_loader.py": """import train
from torch.utils.data import DataLoader
dataloader = DataLoader(train.build_datasets(augment=True)[1], batch_size=64)
""",
        "model.py": "import train\nmodel = train.CNN(num_classes=10, dropout=0.2)\n",
        "loss.py": "from torch import nn\nloss_fn = nn.CrossEntropyLoss()\n",
    },
    "functional_loop": {
        "loader.py": """import train
from torch.utils.data import DataLoader, TensorDataset
dataloader = DataLoader(TensorDataset(*train.load_data()[0]), batch_size=50, shuffle=True)
""",
        "val_loader.py": """import train
from torch.utils.data import DataLoader, TensorDataset
dataloader = DataLoader(TensorDataset(*train.load_data()[1]), batch_size=50)
""",
        "model.py": "import train\nmodel = train.build_model()\n",
        "loss.py": "from torch import nn\nloss_fn = nn.CrossEntropyLoss()\n",
    },
    "notebook_module": {
        "loader.py": "from train import train_dl as dataloader\n",
        "val_loader.py": "from train import valid_dl as dataloader\n",
        "model.py": "import train\nmodel = train.Net()\n",
        "loss.py": "from torch import nn\nloss_fn = nn.CrossEntropyLoss()\n",
    },
}
MODEL = "".join(MODEL_FILES.values())
PROGRAMS = {program: "".join(files.values()) for program, files in PROGRAM_FILES.items()}
START = "from preflight.cli import main; main()"
OPTIONS = ["run", "--dataloader", "loader.py", "--model", "model.py", "--loss", "loss.py", "--format", "json"]


def model_job(case: Case, folder: Path) -> list[str]:
    """Write the harness of a model; the command that runs it."""
    for name, text in MODEL_FILES.items():
        (folder / name).write_text(text.replace("SIDE", str(case.side)))
    return ["-c", START, *OPTIONS]


def program_job(case: Case, folder: Path) -> list[str]:
    """Write the harness of a program; the command that runs it."""
    for name, text in PROGRAM_FILES[case.program].items():
        (folder / name).write_text(text)
    return ["-c", START, *OPTIONS, "--val-dataloader", "val_loader.py"]


def findings(output: str, exit_code: int) -> set[str]:
    """Names of the checks that did not pass; INFO is for information."""
    start = output.find("\n[\n") + 1 if "\n[\n" in output else output.find("[\n")
    try:
        checks = json.JSONDecoder().raw_decode(output[start:])[0] if start >= 0 else None
    except ValueError:
        checks = None
    if checks is None:
        return {"crash"}
    return {check["name"] for check in checks if not check["passed"] and check["severity"] != "info"}
