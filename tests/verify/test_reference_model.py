"""The kit's own CNN through the command line: as it is, and with one line of it changed for the worse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "templates" / "pytorch_project" / "template" / "models" / "cnn.py"
BLOCKS = "        x = self.blocks(x)  # (B, 128, 4, 4)\n"
FLATTEN = "        x = torch.flatten(x, 1)  # (B, 2048)\n"
CLASSIFIER = "        return self.classifier(x)\n"
LAST_LINE = "        self.classifier = nn.Linear(hidden, num_classes)\n"
BUGS = {
    "detached block": ("GRD301", BLOCKS, "        x = self.blocks[2](self.blocks[1](self.blocks[0](x)).detach())\n"),
    "layers in a list": (
        "MOD107",
        BLOCKS,
        "        for block in self.listed:\n            x = block(x)\n",
    ),
    "softmax before the loss": ("MOD110", CLASSIFIER, "        return self.classifier(x).softmax(1)\n"),
    "batch statistics": ("MOD104", CLASSIFIER, "        return self.classifier(x - x.mean(0))\n"),
    "batch norm without statistics": (
        "MOD104",
        "nn.BatchNorm2d(out_channels)",
        "nn.BatchNorm2d(out_channels, track_running_stats=False)",
    ),
    "frozen layer": ("GRD303", LAST_LINE, LAST_LINE + "        self.hidden.requires_grad_(False)\n"),
    "breaks at batch 1": ("MOD102", CLASSIFIER, "        return self.classifier(x).squeeze()\n"),
    "fixed batch": ("MOD102", FLATTEN, "        x = x.reshape(2, -1)\n"),
    "too few parameters": ("MOD103", "kernel_size=3, padding=1)", "kernel_size=3, padding=1, bias=False)"),
}
IN_A_LIST = LAST_LINE + "        self.listed = list(self.blocks)\n        del self.blocks\n"


def verify(source: str, folder: Path) -> tuple[int, dict[str, str]]:
    (folder / "net.py").write_text(source)
    command = [sys.executable, "-m", "kit", "verify", "--model", "net.py:SimpleCNN", "--input-size", "3,32,32"]
    options = ["--num-classes", "10", "--expect-params", "1147914", "--format", "json"]
    result = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=120)
    return result.returncode, {check["code"]: check["status"] for check in json.loads(result.stdout)["checks"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_line_for_the_worse_is_found(name: str, tmp_path: Path) -> None:
    code, old, new = BUGS[name]
    source = SOURCE.read_text()
    assert old in source
    changed = source.replace(old, new)
    if name == "layers in a list":
        changed = changed.replace(LAST_LINE, IN_A_LIST)
    exit_code, statuses = verify(changed, tmp_path)
    assert exit_code == 1
    assert statuses[code] == "fail"


# A network without attention gives these nothing to judge.
ABOUT_ATTENTION = {"MOD116", "MOD117", "MOD118", "MOD119", "MOD128", "MOD129", "MOD130"}


def test_as_it_is_everything_holds(tmp_path: Path) -> None:
    exit_code, statuses = verify(SOURCE.read_text(), tmp_path)
    assert exit_code == 0
    assert {code for code, status in statuses.items() if status != "pass"} <= ABOUT_ATTENTION
