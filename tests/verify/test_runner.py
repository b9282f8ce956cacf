"""The isolated process: whatever the model's code does, there is a report, in time, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from tests.verify import forked
from verify.targets import resolve

HOSTILE = """
import os, sys, time, torch
from torch import nn

class Healthy(nn.Module):
    def __init__(self, num_classes=10, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width * 16, num_classes)
    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), 4).flatten(1))

class Hangs(Healthy):
    def forward(self, x):
        while True:
            time.sleep(0.1)

class Slow(Healthy):
    def forward(self, x):
        time.sleep(0.3)
        return super().forward(x)

class Exits(Healthy):
    def forward(self, x):
        sys.exit(0)

class ExitsHard(Healthy):
    def forward(self, x):
        os._exit(0)

class Crashes(Healthy):
    def forward(self, x):
        os.kill(os.getpid(), 11)

class EatsMemory(Healthy):
    def forward(self, x):
        self.kept = []
        while True:
            self.kept.append(torch.ones(2**24))

class PrintsMegabytes(Healthy):
    def forward(self, x):
        print("x" * 10_000_000)
        sys.stdout.flush()
        os.write(1, b"raw bytes")
        return super().forward(x)

class ReadsInput(Healthy):
    def forward(self, x):
        input("name? ")
        return super().forward(x)

class LeavesChild(Healthy):
    def __init__(self):
        super().__init__()
        if os.fork() == 0:
            open("child.pid", "w").write(str(os.getpid()))
            time.sleep(600)

class NeedsDepth(Healthy):
    def __init__(self, depth):
        super().__init__(width=depth)

class Frozen(Healthy):
    def __init__(self):
        super().__init__()
        self.conv.requires_grad_(False)

def make(num_classes):
    return Healthy(num_classes)

ready = Healthy()
number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("some project")
    (folder / "net.py").write_text(HOSTILE)
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").write_text("")
    (folder / "pkg" / "model.py").write_text("from net import Healthy\n")
    (folder / "pkg" / "relative.py").write_text("from .model import Healthy\n\nclass Net(Healthy):\n    pass\n")
    (folder / "broken.py").write_text("x = (\n")
    (folder / "needs.py").write_text("import not_installed_anywhere\n")
    # A project may well have modules of these names; they must not shadow ours.
    for name in ("report", "verify", "kit", "spec"):
        (folder / f"{name}.py").write_text("raise RuntimeError('shadowed')\n")
    return folder


Run = Callable[..., subprocess.CompletedProcess[str]]


def kit(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "kit", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def verify_json(folder: Path, target: str, *arguments: str, run: Run = kit) -> tuple[int, dict]:
    result = run(folder, "verify", "--model", target, "--format", "json", *arguments)
    assert "Traceback" not in result.stderr
    return result.returncode, json.loads(result.stdout)


def statuses(report: dict) -> dict[str, str]:
    return {check["code"]: check["status"] for check in report["checks"]}


QUICK = ("--select", "MOD101,MOD102,MOD103", "--input-size", "3,16,16")


@pytest.mark.parametrize(
    ("target", "phrase"),
    [
        ("net.py:Hangs", "no answer within 6 s"),
        ("net.py:Exits", "sys.exit(0)"),
        ("net.py:ExitsHard", "ended the process"),
        ("net.py:Crashes", "SIGSEGV"),
    ],
)
def test_hostile_model_is_an_error(folder: Path, target: str, phrase: str) -> None:
    code, report = verify_json(folder, target, *QUICK, "--timeout", "6")
    assert code == 2
    assert report["passed"] is False
    assert statuses(report)["MOD101"] == "pass"
    assert statuses(report)["MOD102"] == "error"
    assert phrase in next(c["message"] for c in report["checks"] if c["code"] == "MOD102")


def test_memory_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verify import runner
    from verify.spec import Spec

    monkeypatch.setattr(runner, "_memory_limit", lambda: 2 * 2**30)
    spec = Spec(model="net.py:EatsMemory", input_size=[3, 16, 16], select=["MOD101", "MOD102"])
    report = runner.verify_model(spec, folder=folder, timeout=60)
    assert report.exit_code == 2
    assert "used more than 2.0 GiB of memory" in report.checks[-1].message


@pytest.mark.parametrize(("name", "exit_code"), [("Slow", 0), ("Hangs", 2)])
def test_a_short_profile_skips_what_is_slow_and_says_so(folder: Path, name: str, exit_code: int) -> None:
    from verify import runner
    from verify.spec import Spec

    short = runner.Profile("--short", seconds=4.0, training=0.5, timeout=8.0, forgiving=True)
    report = runner.verify_model(Spec(model=f"net.py:{name}", input_size=[3, 16, 16]), folder=folder, profile=short)
    assert report.exit_code == exit_code
    assert report.seconds < 12
    skipped = [check.message for check in report.checks if check.status == "skip"]
    assert any("not begun" in text or "not finished" in text or "not reached" in text for text in skipped)


def test_output_of_the_model_never_reaches_ours(folder: Path) -> None:
    code, report = verify_json(
        folder, "net.py:PrintsMegabytes", "--select", "MOD101,MOD102,MOD113", "--input-size", "3,16,16"
    )
    assert code == 0
    assert statuses(report)["MOD113"] == "warn"


def test_standard_input_is_empty(folder: Path) -> None:
    code, report = verify_json(folder, "net.py:ReadsInput", *QUICK)
    assert code == 1
    assert "EOFError" in next(c["measured"] for c in report["checks"] if c["code"] == "MOD102")


def test_processes_of_the_model_are_ended(folder: Path) -> None:
    code, _ = verify_json(folder, "net.py:LeavesChild", *QUICK)
    assert code == 0
    pid = int((folder / "child.pid").read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "a process of the model outlived the verifier"
        time.sleep(0.05)


def test_nothing_is_left_in_the_project(folder: Path) -> None:
    verify_json(folder, "net.py:Healthy", *QUICK)
    assert not list(folder.rglob("__pycache__"))


@pytest.mark.parametrize(
    "target",
    [
        "net.py:Healthy",
        "net:Healthy",
        "pkg.model:Healthy",
        "pkg/model.py:Healthy",
        "pkg/relative.py",
        "net.py:make",
        "net.py:ready",
    ],
)
def test_targets(folder: Path, target: str) -> None:
    code, report = verify_json(folder, target, *QUICK, "--expect-params", "1514", run=forked.kit)
    assert (code, report["target"]) == (0, target)
    assert set(report) == {"schema", "passed", "target", "device", "torch", "seconds", "checks"}
    keys = {"code", "name", "status", "measured", "expected", "message", "hint", "location", "seconds"}
    assert all(set(check) == keys for check in report["checks"])


def test_number_of_classes_reaches_the_constructor(folder: Path) -> None:
    code, report = verify_json(folder, "net.py:make", *QUICK, "--num-classes", "7", run=forked.kit)
    assert code == 0
    assert "(2, 7)" in next(c["measured"] for c in report["checks"] if c["code"] == "MOD102")


def test_kwargs(folder: Path) -> None:
    code, _ = verify_json(
        folder, "net.py:NeedsDepth", *QUICK, "--kwargs", "depth=16", "--expect-params", "3018", run=forked.kit
    )
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--model", "net.py:Nothing"], "net.py has no 'Nothing'"),
        (["--model", "nowhere.py:Net"], "nowhere.py does not exist"),
        (["--model", "nowhere.at.all:Net"], "no module 'nowhere.at.all'"),
        (["--model", "broken.py:Net"], "broken.py:1 raises SyntaxError"),
        (["--model", "needs.py:Net"], "No module named 'not_installed_anywhere'"),
        (["--model", "net.py:number"], "a target must be a class"),
        (["--model", "net.py"], "does not say which model"),
        (["--model", "net.py:NeedsDepth"], "'depth'"),
        (["--model", "net.py:Healthy", "--kwargs", "widht=3"], "did you mean 'width'?"),
        (["--model", "cnnn"], "did you mean 'cnn'?"),
        (["--model", "cnn", "--expect-params", "many"], "is not a number"),
        (["--model", "cnn", "--tolerance", "1%"], "a tolerance needs"),
        (["--model", "cnn", "--input-size", "3,a,b"], "must be numbers"),
        (["--model", "cnn", "--output-size", "3,a,b"], "--output-size '3,a,b' must be numbers"),
        (["--model", "cnn", "--output-size", "10,0"], "output_size [10, 0] must be positive numbers"),
        (["--model", "cnn", "--output-size", "10", "--num-classes", "10"], "leave out num_classes and like"),
        (["--model", "cnn", "--kwargs", "width"], "must look like key=value"),
        (["--model", "cnn", "--select", "XYZ"], "no rule has a code"),
        (["--model", "cnn", "--select", "MOD103", "--ignore", "MOD"], "no rule is left"),
        (["--model", "cnn", "--device", "cuda"], "PyTorch sees no GPU"),
        (["--model", "cnn", "--require-gpu", "--device", "cpu"], "a GPU is required"),
        (["--model", "cnn", "-o", "no/such/folder.txt"], "its folder does not exist"),
        (["--project", "nowhere"], "does not exist"),
        ([], "verify.yaml does not exist"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(folder: Path, arguments: list[str], phrase: str) -> None:
    result = forked.kit(folder, "verify", *arguments, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert phrase in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_unusable_target_is_still_json(folder: Path) -> None:
    code, report = verify_json(folder, "net.py:Nothing", run=forked.kit)
    assert code == 2
    assert report["passed"] is False
    assert statuses(report) == {"MOD101": "error"}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("model: [unclosed", "verify.yaml:1 is not valid YAML"),
        ("- a\n- b\n", "must be a list of keys"),
        ("modle: cnn\n", "unknown key 'modle'; did you mean 'model'?"),
        ("model: cnn\nnum_classes: many\n", "num_classes"),
        ("model: cnn\nexpect_params: lots\n", "is not a number"),
        ("num_classes: 10\n", "names no model"),
        ("", "must be a list of keys"),
    ],
)
def test_broken_spec_is_one_line(tmp_path: Path, text: str, phrase: str) -> None:
    (tmp_path / "verify.yaml").write_text(text)
    result = forked.kit(tmp_path, "verify")
    assert result.returncode == 2
    assert phrase in result.stderr
    assert result.stderr.count("\n") == 1


def test_spec_of_a_project(folder: Path, tmp_path: Path) -> None:
    """The spec is read from the project, and the command line wins over it."""
    (tmp_path / "net.py").write_text(HOSTILE)
    (tmp_path / "verify.yaml").write_text(
        "model: net.py:Healthy\ninput_size: [3, 16, 16]\nexpect_params: 1514\nselect: [MOD101, MOD102, MOD103]\n"
    )
    assert forked.kit(tmp_path, "verify").returncode == 0
    assert forked.kit(folder, "verify", "--project", str(tmp_path)).returncode == 0
    assert forked.kit(tmp_path, "verify", "--expect-params", "1515").returncode == 1


def test_formats(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    target = ("--model", "net.py:Frozen", "--input-size", "3,16,16", "--select", "MOD101,MOD102,GRD303")
    result = forked.kit(folder, "verify", *target, "--format", "junit", "-o", str(report))
    assert (result.returncode, result.stdout) == (1, "")
    suite = ElementTree.parse(report).getroot()[0]
    assert suite.attrib["tests"] == "3"
    assert suite.attrib["failures"] == "1"
    (failure,) = suite.iter("failure")
    assert "frozen" in failure.attrib["message"]

    text = forked.kit(folder, "verify", "--model", "net.py:Frozen", *QUICK).stdout
    assert "passed" in text.splitlines()[0]
    assert "\x1b" not in text


def test_failure_shows_both_numbers(folder: Path) -> None:
    result = forked.kit(folder, "verify", "--model", "cnn", "--expect-params", "1234858", "--select", "MOD103")
    assert result.returncode == 1
    assert "1,147,914" in result.stdout
    assert "1,234,858" in result.stdout


def test_a_reference_for_another_size_of_image_is_tried_with_it() -> None:
    target = resolve("vit", {"variant": "micro", "image_size": 32, "patch_size": 8}, None, Path())
    assert target.input_size == (3, 32, 32)
    assert resolve("vit", {}, None, Path()).input_size == (3, 224, 224)


def test_reference_model_passes_every_rule(folder: Path) -> None:
    code, report = verify_json(folder, "cnn", "--expect-params", "1147914", run=forked.kit)
    assert code == 0
    about_attention = {"MOD116", "MOD117", "MOD118", "MOD119", "MOD128", "MOD129", "MOD130"}
    assert {code for code, status in statuses(report).items() if status != "pass"} <= about_attention
    assert {check["code"] for check in report["checks"]} >= {"MOD103", "GRD301", "TRN402"}


def test_interrupt_ends_everything_without_a_traceback(folder: Path) -> None:
    command = [sys.executable, "-P", "-m", "kit", "verify", "--model", "net.py:Hangs", "--input-size", "3,16,16"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Under nohup, or in the background of a script, the tests themselves ignore Ctrl-C, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    watched = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while not (children := watched.children()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert (output, errors) == ("", "")
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_exit_code_is_the_verdict_whoever_reads_the_report(folder: Path) -> None:
    """A reader that closes the pipe, or an encoding without our characters, is no failure of the model."""
    command = [sys.executable, "-P", "-m", "kit", "verify", "--model", "cnn", "--select", "MOD103"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 0)
    process.stderr.close()

    ascii_only = kit(folder, *command[4:], "--expect-params", "1.1M", PYTHONIOENCODING="ascii")
    assert (ascii_only.returncode, ascii_only.stderr) == (1, "")
    assert "1,147,914" in ascii_only.stdout


def test_text_report_in_a_file_is_plain(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    result = forked.kit(folder, "verify", "--model", "cnn", "--select", "MOD103", "-o", str(report), FORCE_COLOR="1")
    assert (result.returncode, result.stdout) == (0, "")
    assert "1,147,914" in report.read_text()
    assert "\x1b" not in report.read_text()


@pytest.mark.parametrize("codes", ["MOD101,MOD102,MOD103", "MOD"])
def test_a_model_that_cannot_be_built_is_told_once(folder: Path, codes: str) -> None:
    code, report = verify_json(folder, "cnn", "--kwargs", "channels=[0]", "--select", codes, run=forked.kit)
    assert code == 1
    assert [check["code"] for check in report["checks"] if check["status"] not in ("pass", "skip")] == ["MOD101"]
