"""`kit demo`: which data, which folder, what it says, how it ends, and once the whole of it."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit import demo
from kit.demo import DemoError, choose_data, is_demo, next_commands, prepare_project, run_demo, trained_on_other_data
from kit.demo_report import Run, describe_run, draw_curves, read_run

ROOT = Path(__file__).resolve().parents[1]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIT_DATA", raising=False)


@pytest.fixture(scope="module")
def scaffolded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo project as the first step leaves it; tests do not change it."""
    project = tmp_path_factory.mktemp("a demo") / "kit demo"
    assert prepare_project(project, "digits") == f"made {project}"
    return project


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# Which data


def test_the_digits_are_the_default_and_the_reason_is_given() -> None:
    data = choose_data(download=False)
    assert data.dataset == "digits"
    assert data.environment == {}
    assert "scikit-learn" in data.why


def test_kit_data_chooses_cifar10_and_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "cifar-10-batches-py").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KIT_DATA", "here")
    for download in (False, True):
        data = choose_data(download)
        assert data.dataset == "cifar10"
        assert data.environment == {"KIT_DATA": str(tmp_path / "here")}
        assert "KIT_DATA" in data.why


def test_download_chooses_cifar10() -> None:
    data = choose_data(download=True)
    assert data.dataset == "cifar10"
    assert "--download" in data.why


def test_a_wrong_kit_data_is_an_error_not_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_DATA", str(tmp_path))
    with pytest.raises(DemoError, match="holds no cifar-10-batches-py"):
        run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


# Which folder


def test_the_project_is_a_cnn_for_the_data_and_known_as_a_demo(scaffolded: Path) -> None:
    assert is_demo(scaffolded)
    assert "dataset: digits" in (scaffolded / "config.yaml").read_text()
    assert "simple" in (scaffolded / "models" / "cnn.py").read_text().lower()


def test_a_former_demo_is_used_again_unchanged(scaffolded: Path) -> None:
    before = {path: path.read_bytes() for path in scaffolded.rglob("*") if path.is_file()}
    assert "training goes on" in prepare_project(scaffolded, "digits")
    assert {path: path.read_bytes() for path in scaffolded.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["notes.txt", ".copier-answers.yml"])
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    write(tmp_path / content, "project_name: my thesis\n")
    with pytest.raises(DemoError, match="not a demo"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [content]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    write(tmp_path / "demo", "")
    for dest in (tmp_path / "demo", tmp_path / "demo" / "below"):
        with pytest.raises(DemoError):
            run_demo(dest)
    assert (tmp_path / "demo").read_text() == ""


def test_a_demo_that_lost_files_is_named(tmp_path: Path) -> None:
    write(tmp_path / ".copier-answers.yml", f"project_name: {demo.PROJECT_NAME}\n")
    with pytest.raises(DemoError, match=r"lost its train\.py"):
        prepare_project(tmp_path, "digits")


@pytest.mark.parametrize("answers", ["", "[1, 2]", "a: [", "\0"])
def test_broken_answers_make_no_demo(tmp_path: Path, answers: str) -> None:
    write(tmp_path / ".copier-answers.yml", answers)
    assert not is_demo(tmp_path)


def test_a_checkpoint_of_other_data_is_noticed(tmp_path: Path) -> None:
    assert not trained_on_other_data(tmp_path, "digits")
    write(tmp_path / "checkpoints" / "config.yaml", "dataset: digits\n")
    assert not trained_on_other_data(tmp_path, "cifar10"), "there is no checkpoint"
    write(tmp_path / "checkpoints" / "last.pt", "")
    assert not trained_on_other_data(tmp_path, "digits")
    assert trained_on_other_data(tmp_path, "cifar10")


# What to type next


def test_next_commands_survive_a_space_and_name_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "my demo" / "config.yaml", "dataset: digits\n")
    interpreter = tmp_path / "my venv" / "python"
    write(interpreter, "#!/bin/sh\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))

    bare = next_commands(tmp_path / "my demo", "digits", 4)
    assert bare[0] == f"cd '{tmp_path}/my demo'"
    assert shlex.split(bare[1], comments=True) == [str(interpreter), "train.py", "--set", "epochs=8"]

    write(interpreter.with_name("activate"), "")
    in_venv = next_commands(tmp_path / "my demo", "cifar10", 4)
    assert in_venv[0] == f". '{tmp_path}/my venv/activate'"
    assert shlex.split(in_venv[2], comments=True) == ["python", "train.py", "--set", "epochs=8", "dataset=cifar10"]

    monkeypatch.setenv("PATH", str(interpreter.parent))
    on_path = next_commands(tmp_path / "my demo", "digits", 4)
    assert on_path[0].startswith("cd ")
    assert on_path[1].startswith("python train.py")


# The report


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three epochs of two batches, the second one the best."""
    folder = tmp_path / "runs" / "cnn-digits-1"
    lines = []
    for epoch in (1, 2, 3):
        for step in (2 * epoch - 1, 2 * epoch):
            numbers = {"loss": 2 / step, "accuracy": 0.1 * step, "lr": 0.001, "grad_norm": 3.0}
            lines.append({"kind": "train", "step": step, "epoch": epoch, **numbers, "time": 0})
        numbers = {
            "train_loss": 1 / epoch,
            "train_accuracy": 0.2 * epoch,
            "val_loss": 0.5,
            "val_accuracy": 0.25 * epoch,
        }
        lines.append({"kind": "epoch", "step": 2 * epoch, "epoch": epoch, **numbers, "lr": 0.001, "seconds": 1.5})
    write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(folder / "config.yaml", "dataset: digits\nepochs: 3\ngrad_clip: 1.0\n")
    test = {
        "accuracy": 0.875,
        "loss": 0.4321,
        "samples": 1600,
        "epoch": 2,
        "per_class": {"0": {"accuracy": 0.5, "samples": 2}, "1": {"accuracy": None, "samples": 0}},
        "misclassified": [{}] * 200,
    }
    write(folder / "evaluation" / "test" / "metrics.json", json.dumps(test))
    for name in (
        "evaluation/test/confusion_matrix",
        "evaluation/test/per_class_accuracy",
        "evaluation/test/misclassified",
    ):
        (folder / f"{name}.png").write_bytes(PNG + name.encode())
    (folder.parent / "sample_batch.png").write_bytes(PNG + b"sample_batch")
    return read_run(tmp_path)


def test_the_run_that_was_evaluated_last_is_read(run: Run, tmp_path: Path) -> None:
    later = tmp_path / "runs" / "cnn-digits-0"
    for name in ("metrics.jsonl", "config.yaml", "evaluation/test/metrics.json"):
        write(later / name, (run.folder / name).read_text())
    os.utime(later / "evaluation" / "test" / "metrics.json", (time.time() + 60, time.time() + 60))
    assert read_run(tmp_path).folder == later
    assert len(run.batches) == 6
    assert len(run.epochs) == 3
    assert run.headline == "test accuracy 87.50% of 1,600 images"


def test_sections_hold_the_numbers_the_pictures_and_the_settings(run: Run) -> None:
    sections = {
        section.title: section for section in describe_run(run, "digits, why", ["train.py", "--set", "epochs=3"])
    }
    result = sections["Result"].facts
    assert result["Test accuracy"].startswith("87.50% of 1,600")
    assert result["Validation"].startswith("50.00% after epoch 2")
    assert result["Training"] == "3 epochs in 4 s"
    assert result["Data"] == "digits, why"
    pictures = [picture for section in sections.values() for picture in section.pictures]
    assert len(pictures) == 5
    assert all(picture.png.startswith(PNG) and picture.alt for picture in pictures)
    assert len({picture.png for picture in pictures}) == 5
    assert sections["Configuration"].facts == {"dataset": "digits", "epochs": "3", "grad_clip": "1.0"}
    assert sections["Configuration"].text.startswith("python train.py --set epochs=3\n")


def test_metrics_that_do_not_reach_back_to_the_best_epoch_leave_it_out(run: Run) -> None:
    late = Run(folder=run.folder, batches=run.batches[4:], epochs=run.epochs[2:], config=run.config, test=run.test)
    result = describe_run(late, "digits", ["train.py"])[0].facts
    assert "Validation" not in result
    assert result["Training"].startswith("3 epochs")


def test_curves_show_the_metrics(run: Run) -> None:
    flat = [{**line, "grad_norm": 0.5} for line in run.batches]
    other = Run(folder=run.folder, batches=flat, epochs=run.epochs, config=run.config, test=run.test)
    unclipped = Run(
        folder=run.folder, batches=flat, epochs=run.epochs, config={**run.config, "grad_clip": 0}, test=run.test
    )
    pictures = {draw_curves(run), draw_curves(other), draw_curves(unclipped)}
    assert len(pictures) == 3
    assert draw_curves(run) in pictures


# How it ends


def test_a_model_that_is_not_as_declared_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "demo"
    prepare_project(project, "digits")
    spec = project / "verify.yaml"
    spec.write_text(spec.read_text().replace("1147914", "1234858") + "select: [MOD103]\n")

    assert run_demo(project) == 1

    captured = capfd.readouterr()
    assert "FAIL  MOD103" in captured.out
    assert "1,147,914" in captured.out
    assert captured.err.splitlines() == [
        f"kit: the model was not verified, so it is not trained; details in {project / 'report.html'}"
    ]
    assert "1,234,858" in (project / "report.html").read_text()
    assert not (project / "runs").exists()


def test_a_broken_spec_is_one_line(tmp_path: Path) -> None:
    project = tmp_path / "demo"
    prepare_project(project, "digits")
    (project / "verify.yaml").write_text("modle: cnn\n")
    with pytest.raises(DemoError, match="modle"):
        run_demo(project)


# A demo whose steps are stand-ins: the data step and training only wait, and note the signals that reach them.
STAND_IN = """
import pathlib, signal, sys, time
def note(number, frame):
    with open("signals", "a") as file:
        file.write(signal.Signals(number).name + " ")
    time.sleep(0.5)
    {ending}
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
print("waiting", flush=True)
time.sleep(60)
"""
DRIVER = """
import signal, sys
from pathlib import Path
from kit import demo
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background inherits others
signal.signal(signal.SIGHUP, signal.SIG_DFL)
demo._verify = lambda console, project: None
demo.prepare_project = lambda project, dataset: "prepared"
demo.LOOK_AT_DATA = ""
demo.PATIENCE_TO_SAVE = float(sys.argv[2])
sys.exit(demo.run_demo(Path(sys.argv[1])))
"""


def start_stand_in(project: Path, ending: str, patience: float) -> subprocess.Popen[str]:
    """A demo in a process group of its own, as a shell starts it, that has come to training."""
    write(project / "train.py", STAND_IN.format(ending=ending))
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(project), str(patience)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert any("waiting" in line for line in process.stdout)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_reaches_the_training_once_and_waits_for_it(tmp_path: Path, number: signal.Signals) -> None:
    process = start_stand_in(tmp_path, "pathlib.Path('saved').touch(); sys.exit(130)", patience=20)
    os.killpg(process.pid, number)  # as a terminal does: to the whole group
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "kit: interrupted; the same command goes on where this one stopped\n"
    assert (tmp_path / "signals").read_text() == "SIGINT "
    assert (tmp_path / "saved").exists(), "the demo ended before its child"


def test_a_training_that_does_not_end_is_ended(tmp_path: Path) -> None:
    process = start_stand_in(tmp_path, "time.sleep(60)", patience=1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert (tmp_path / "signals").read_text() == "SIGINT SIGTERM "


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("import sys; sys.exit(2)", 2, "kit: train: ended with exit code 2, see above"),
        ("import os; os.kill(os.getpid(), 9)", 137, "kit: train: died of SIGKILL"),
        ("import sys; sys.exit(130)", 130, "kit: interrupted; the same command goes on where this one stopped"),
    ],
)
def test_a_step_that_fails_gives_its_code_and_one_line(tmp_path: Path, script: str, code: int, message: str) -> None:
    write(tmp_path / "train.py", script)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), "20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr.splitlines() == [message]
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verify.report import Report

    write(tmp_path / "report.html", "old")

    def disk_full(self: Path, text: str, **_: object) -> int:
        self.write_bytes(text.encode()[:10])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", disk_full)
    with pytest.raises(OSError, match="No space left"):
        demo._write_page(tmp_path, Report(target="cnn"), [])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_the_state_of_training_in_one_line(tmp_path: Path) -> None:
    assert demo.training_state(tmp_path, 7) == ""
    status = {"pid": 7, "state": "running", "step": 1200, "steps": 3520, "eta_seconds": 61.2}
    write(tmp_path / "runs" / "a" / "status.json", "")
    write(tmp_path / "runs" / "b" / "status.json", json.dumps(status | {"pid": 8}))
    assert demo.training_state(tmp_path, 7) == ""
    write(tmp_path / "runs" / "c" / "status.json", json.dumps(status))
    assert demo.training_state(tmp_path, 7) == "... batch 1,200 of 3,520, about 61 s left"


# The whole of it


def kit_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`kit demo "my demo"` in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "kit", "demo", "my demo", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_the_whole_demo_then_again_then_longer(tmp_path: Path) -> None:
    first = kit_demo(tmp_path, "--epochs", "6")
    assert first.returncode == 0, first.stdout + first.stderr
    lines = first.stdout.splitlines()
    assert "handwritten digits" in lines[0]
    assert [line[:3] for line in lines if re.match(r"\d/6 ", line)] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]
    assert "  cd 'my demo'" in lines

    project = tmp_path / "my demo"
    run = read_run(project)
    assert run.test["accuracy"] > 0.9
    assert run.test["dataset"] == "digits"
    assert [epoch["epoch"] for epoch in run.epochs] == [1, 2, 3, 4, 5, 6]
    assert any(line.endswith(run.headline) for line in lines)
    page = (project / "report.html").read_text()
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]+"', page)
    assert len(pictures) == page.count("<img") == 5
    assert all(base64.b64decode(picture).startswith(PNG) for picture in pictures)
    assert f"{run.test['accuracy']:.2%} of 359 images" in page
    assert "1,147,914" in page
    assert not re.search(r"https?:", page)

    weights = (project / "checkpoints" / "last.pt").read_bytes()
    again = kit_demo(tmp_path, "--epochs", "6")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "training goes on where it stood" in again.stdout
    assert "Training complete after 6 epochs already" in again.stdout
    assert (project / "checkpoints" / "last.pt").read_bytes() == weights

    longer = kit_demo(tmp_path, "--epochs", "7")
    assert longer.returncode == 0, longer.stdout + longer.stderr
    assert [epoch["epoch"] for epoch in read_run(project).epochs] == [1, 2, 3, 4, 5, 6, 7]
    assert len(list((project / "runs").glob("*/metrics.jsonl"))) == 1
