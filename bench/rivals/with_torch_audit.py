"""torch-audit: around a training loop of one's own (`audit_dynamic`) or put into a script (`autopatch`)."""

from __future__ import annotations

import re
from pathlib import Path

from cases import Case
from harness import LOSS, TENSORS

NAME = "torch-audit"
PACKAGES = ["torch-audit==0.3.0", "click==8.1.8"]
CLAIMS = (
    "loops at run time: NaN, exploding or missing gradients, dead and unused layers, the optimizer's settings, "
    "suspicious batches, hints for the hardware. Not the order of the calls in a step, splits, schedules or evaluation."
)
COMMANDS = ["python check.py", "python train.py"]
MODEL = f"""import torch
from torch.nn import functional as F
from torch_audit import audit_dynamic
from torch_audit.reporters.console import ConsoleReporter
from net import Net
{LOSS}{TENSORS}
model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
with audit_dynamic(model, optimizer=optimizer, every_n_steps=1, reporters=[ConsoleReporter()]) as auditor:
    auditor.audit_static()
    auditor.audit_init()
    for _ in range(5):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(auditor.forward(inputs), targets)
        auditor.backward(loss)
        auditor.optimizer_step()
result = auditor.finish(report=False)
for finding in result.findings:
    print("FINDING", finding.severity.value, finding.rule_id, finding.message)
"""
START = """from torch_audit import autopatch
from torch_audit.reporters.console import ConsoleReporter
auditor = autopatch(model, optimizer=OPT, every_n_steps=1, reporters=[ConsoleReporter()], fail_level="FATAL")
"""
END = """result = auditor.finish(report=False)
for finding in result.findings:
    print("FINDING", finding.severity.value, finding.rule_id, finding.message)
auditor.unpatch()
"""
# Before the loop over the epochs, and after it.
PLACES = {
    "argparse_script": ("    for epoch in range(start_epoch", "    best = torch.load(", "optimizer"),
    "functional_loop": ("    for epoch in range(MAX_EPOCHS", "    model.load_state_dict(best_state", "optimizer"),
    "notebook_module": ("for epoch in range(EPOCHS", "# %% Test with", "opt"),
}
# It really trains; two epochs show it every kind of step.
SHORTER = {"argparse_script": ["--epochs", "2"]}
PROGRAMS = dict.fromkeys(PLACES, START + END)


def model_job(case: Case, folder: Path) -> list[str]:
    """Write the harness of a model; the command that runs it."""
    (folder / "check.py").write_text(MODEL.replace("SIDE", str(case.side)))
    return ["check.py"]


def program_job(case: Case, folder: Path) -> list[str]:
    """Put the auditor into the script; the command that runs it."""
    script = folder / "train.py"
    text = script.read_text()
    before, after, optimizer = PLACES[case.program]
    for place, lines in ((before, START.replace("OPT", optimizer)), (after, END)):
        if text.count(place) != 1:
            raise ValueError(f"{case.name}: {place!r} occurs {text.count(place)} times")
        indent = place[: len(place) - len(place.lstrip())]
        text = text.replace(place, "".join(f"{indent}{line}\n" for line in lines.splitlines()) + place)
    script.write_text(text)
    return ["train.py", *SHORTER.get(case.program, [])]


def findings(output: str, exit_code: int) -> set[str]:
    """Rules that it reported as a warning or worse; INFO is for information."""
    found = set(re.findall(r"^FINDING (?:WARN|ERROR|FATAL) (\w+)", output, re.M))
    return found | ({"crash"} if exit_code and not found else set())
