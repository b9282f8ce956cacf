"""A flag that says which model is the best, and the functions that ignore it; look-alikes that do not."""

from __future__ import annotations

import textwrap

import pytest

from verify.report import Finding
from verify.rules.source_checkpoint import best_flag_ignored
from verify.trace.record import Record

IGNORES = """
def save_checkpoint(state, is_best, path="checkpoint.pt"):
    torch.save(state, path)
"""
LOOP = """
for epoch in range(9):
    acc = evaluate(model)
    is_best = acc > best_acc
    best_acc = max(acc, best_acc)
    save_checkpoint({"model": model.state_dict()}, is_best)
"""


def findings(code: str, **more: str) -> list[Finding]:
    files = {"train.py": code, **{f"{name}.py": text for name, text in more.items()}}
    texts = {path: "import shutil\nimport torch\n" + textwrap.dedent(text) for path, text in files.items()}
    return list(best_flag_ignored(Record([{"kind": "source", "path": p, "text": t} for p, t in texts.items()])))


@pytest.mark.parametrize(
    "code",
    [
        IGNORES + LOOP,
        IGNORES + LOOP.replace("state_dict()}, is_best", "state_dict()}, acc > best_acc"),
        IGNORES + LOOP.replace("    save_checkpoint", "    if epoch % 2 == 0:\n        save_checkpoint"),
        IGNORES.replace("is_best", "best") + LOOP.replace(", is_best)", ", best=is_best)"),
    ],
)
def test_a_flag_that_is_never_read(code: str):
    found = findings(code)
    assert ["is a parameter of save_checkpoint, which never reads it" in f.measured for f in found] == [True]


def test_a_flag_of_a_function_in_another_file():
    found = findings("from utils import save_checkpoint\n" + LOOP, utils=IGNORES)
    assert [f.location for f in found] == ["utils.py:4"]


@pytest.mark.parametrize(
    "code",
    [
        IGNORES + "    if is_best:\n        shutil.copyfile(path, 'best.pt')\n" + LOOP,
        IGNORES.replace("path)", "path if not is_best else 'best.pt')") + LOOP,
        IGNORES + LOOP.replace("    save_checkpoint", "    if is_best:\n        save_checkpoint"),
        IGNORES + LOOP + "    if is_best:\n        shutil.copyfile('checkpoint.pt', 'best.pt')\n",
        IGNORES + LOOP.replace(", is_best)", ", False)"),
        IGNORES,
        "def show(state, is_best):\n    print(state)\n" + LOOP.replace("save_checkpoint", "show"),
        """
        class Saver:
            def save(self, state, is_best):
                torch.save(state, "last.pt")
        class Best(Saver):
            def save(self, state, is_best):
                if is_best:
                    torch.save(state, "best.pt")
        saver.save(state, acc > best)
        """,
    ],
)
def test_a_flag_that_is_read_or_not_given(code: str):
    assert findings(code) == []
