"""`kit watch` as a user meets it: wrong use in one line, what goes where, exit codes, records that are judged again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kit.cli import main
from tests.verify.trace.runs import PLAIN, TRAIN, write
from verify.trace import launch

REPORT_KEYS = ["schema", "passed", "target", "device", "torch", "seconds", "checks"]
CHECK_KEYS = ["code", "name", "status", "measured", "expected", "message", "hint", "location", "seconds"]


def kit(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a command line."""
    monkeypatch.setattr(sys, "argv", ["kit", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "print('trained nothing')\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "nothing to watch"),
        (["--", "no-such-program"], "no program 'no-such-program'"),
        (["--", "python", "missing.py"], "no script 'missing.py'"),
        (["--select", "XYZ9", "--", "python", "train.py"], "XYZ9"),
        (["--ignore", "DAT,nonsense", "--", "python", "train.py"], "NONSENSE"),
        (["--quick", "--full", "--", "python", "train.py"], "exclude each other"),
        (["--record", "no/such/run.jsonl", "--", "python", "train.py"], "folder does not exist"),
        (["--record", ".", "--", "python", "train.py"], "it is a folder"),
        (["--html", "no/such/page.html", "--", "python", "train.py"], "page.html"),
        (["-o", "no/such/report.txt", "--", "python", "train.py"], "report.txt"),
        (["--record", "missing.jsonl"], "missing.jsonl"),
        (["--record", "train.py"], "cannot be read as a record"),
        (["--max-train-batches", "none", "--", "python", "train.py"], "--max-train-batches"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], problem: str, folder: Path, monkeypatch, capsys):
    assert kit(monkeypatch, "watch", *words) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert problem in errors
    assert len(errors.strip().splitlines()) == 1
    assert [path.name for path in folder.iterdir()] == ["train.py"]


def test_what_trained_nothing_is_no_pass(folder: Path, monkeypatch, capsys):
    assert kit(monkeypatch, "watch", "--", "python", "train.py") == 2
    assert "RUN074" in capsys.readouterr().out


def test_a_kept_record_is_judged_again(folder: Path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "DEFAULT", PLAIN)
    write(folder, TRAIN.replace("            optimizer.zero_grad()\n", "") + "train()\n")
    place = ["--format", "json", "--select", "TRN,RUN,OPT"]
    assert kit(monkeypatch, "watch", *place, "--record", "run.jsonl", "--", "python", "train.py") == 1
    output, errors = capsys.readouterr()
    first = json.loads(output)
    assert errors == ""
    assert list(first) == REPORT_KEYS
    assert all(list(check) == CHECK_KEYS for check in first["checks"])
    assert {check["status"] for check in first["checks"]} <= {"pass", "fail", "warn", "skip", "error"}
    assert {check["code"][:3] for check in first["checks"]} == {"TRN", "RUN", "OPT"}
    assert (first["passed"], first["target"]) == (False, "python train.py")
    assert [c["code"] for c in first["checks"] if c["status"] == "fail"] == ["TRN403"]

    assert kit(monkeypatch, "watch", *place, "--record", "run.jsonl", "--html", "page.html") == 1
    again = json.loads(capsys.readouterr().out)
    for report in (first, again):
        for check in report["checks"]:
            check["seconds"] = 0
    assert again == first
    assert "TRN403" in (folder / "page.html").read_text()
    assert (
        kit(monkeypatch, "watch", "--record", "run.jsonl", "--ignore", "TRN403", "--select", "TRN,OPT", "-o", "r") == 0
    )
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in folder.iterdir()) == ["page.html", "r", "run.jsonl", "train.py"]
