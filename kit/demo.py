"""`kit demo`: the whole path once, from an empty folder to a report that can be opened in a browser.

Scaffolds a project, verifies its model, looks at the data, trains, evaluates, and writes report.html. All but the last
is what a user would type; the commands are printed as they run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from verify.report import Report

PROJECT_NAME = "Kit demo"  # in .copier-answers.yml it tells a former demo from somebody's project
PROJECT_FILES = ("train.py", "evaluate.py", "config.yaml", "verify.yaml")
STEPS = 6
INTERRUPTED = 130
HEARTBEAT = 10.0  # seconds between two lines about a training whose progress bar nobody can see
PATIENCE_TO_SAVE = 30.0  # seconds that a child may take to finish its batch and save
# `python -m data.dataloader`, but Ctrl-C during the import of torch is quiet, not a traceback or an abort.
LOOK_AT_DATA = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, lambda *_: os._exit(130))
import torch
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    runpy.run_module("data.dataloader", run_name="__main__")
except KeyboardInterrupt:
    sys.exit(130)
"""


class DemoError(Exception):
    """The demo cannot start or go on; `str()` of it is one sentence for the user."""


class StepFailedError(Exception):
    """A step ended badly, and has said why; `code` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images the demo uses.

    Args:
        dataset: the project's name for them.
        why: one sentence for the first line: which, and why these.
        epochs: how many fit a demo.
        takes: how long the demo then is, on two CPU cores.
        log_every: batches between two points of a curve.
        environment: variables for the child processes.
    """

    dataset: str
    why: str
    epochs: int
    takes: str
    log_every: int
    environment: Mapping[str, str]


def run_demo(dest: Path, *, epochs: int | None = None, download: bool = False) -> int:
    """Scaffold, verify, train and evaluate in `dest`, and write `dest/report.html`.

    A folder that an earlier demo made is used again: training goes on where it stood. Nothing in it is lost.

    Args:
        dest: a folder that does not exist, is empty, or is of an earlier demo.
        epochs: passes over the training images; as many as fit a demo when None.
        download: fetch CIFAR-10 instead of using the digits, unless the variable KIT_DATA says where it is.

    Returns:
        0, or the exit code of the step that failed (130: interrupted).

    Raises:
        DemoError: the folder or the data are not usable.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    try:
        with _signals_interrupt():
            _demo(console, dest, choose_data(download), epochs)
    except StepFailedError as error:
        print(f"kit: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("kit: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        raise DemoError(f"{error.filename or dest}: {error.strerror or error}") from None
    return 0


def choose_data(download: bool) -> Data:
    """CIFAR-10 if the user has it or asks for it, otherwise the digits.

    Raises:
        DemoError: KIT_DATA names a folder without CIFAR-10.
    """
    folder = os.environ.get("KIT_DATA")
    if folder:
        root = Path(folder).resolve()
        if not (root / "cifar-10-batches-py").is_dir():
            raise DemoError(f"KIT_DATA is {folder}, but it holds no cifar-10-batches-py; correct or unset the variable")
        # Absolute, because the children run in the project's folder.
        return _cifar10(f"CIFAR-10 from {root}, because KIT_DATA names it", {"KIT_DATA": str(root)})
    if download:
        return _cifar10("CIFAR-10, because of --download (170 MB, once)", {})
    return Data(
        dataset="digits",
        why="the 1,797 handwritten digits of scikit-learn, as neither KIT_DATA nor --download asks for CIFAR-10",
        epochs=12,
        takes="half a minute",
        log_every=1,
        environment={},
    )


def _cifar10(why: str, environment: Mapping[str, str]) -> Data:
    return Data(
        dataset="cifar10",
        why=why,
        epochs=1,
        takes="a minute, most of it training",
        log_every=10,
        environment=environment,
    )


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """A request to end, or a closed terminal, is treated like Ctrl-C: the children are ended in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signals = (signal.SIGTERM, signal.SIGHUP)
    ours = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]  # nohup wants it ignored
    before = {number: signal.signal(number, interrupt) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _demo(console: Console, dest: Path, data: Data, epochs: int | None) -> None:
    from rich.markup import escape

    started = time.monotonic()
    project = dest.resolve()
    settings = [f"dataset={data.dataset}", f"epochs={epochs or data.epochs}", f"log_every={data.log_every}"]
    console.print(f"[bold]kit demo[/]  data:   {escape(data.why)}")
    length = f"about {data.takes} on 2 CPU cores, --epochs changes it" if epochs is None else "as --epochs says"
    console.print(f"          epochs: {epochs or data.epochs}, {length}")

    _announce(console, 1, "Scaffold", f"kit new {shlex.quote(str(dest))} --dataset {data.dataset}")
    _say(console, prepare_project(project, data.dataset))
    _announce(console, 2, "Verify", "kit verify")
    report = _verify(console, project)

    train = ["train.py", "--set", *settings, *(["--fresh"] if trained_on_other_data(project, data.dataset) else [])]
    steps = {
        "Look at the data": (["-c", LOOK_AT_DATA, "--set", settings[0]], f"-m data.dataloader --set {settings[0]}"),
        "Train": (train, shlex.join(train)),
        "Evaluate": (["evaluate.py"], "evaluate.py"),
    }
    for number, (title, (arguments, shown)) in enumerate(steps.items(), start=3):
        _announce(console, number, title, f"python {shown}")
        _run(console, title, arguments, project, data.environment)

    _announce(console, STEPS, "Report", "report.html")
    from kit.demo_report import describe_run, read_run

    run = read_run(project)
    page = _write_page(project, report, describe_run(run, data.why, train))
    _say_goodbye(console, dest, page, run, time.monotonic() - started)


def prepare_project(project: Path, dataset: str) -> str:
    """Scaffold a project, or find the one of an earlier demo; what was done, in one line.

    Raises:
        DemoError: the folder holds something else, or cannot be written to.
    """
    from kit.scaffold import ScaffoldError, new_project

    if not is_demo(project):
        if project.is_dir() and any(child.name != ".git" for child in project.iterdir()):
            raise DemoError(f"{project} holds something that is not a demo; choose another folder: kit demo FOLDER")
        try:
            new_project(project, model="cnn", dataset=dataset, data={"project_name": PROJECT_NAME})
        except ScaffoldError as error:
            raise DemoError(error) from None
        return f"made {project}"
    missing = [name for name in PROJECT_FILES if not (project / name).is_file()]
    if missing:
        raise DemoError(f"{project} is a demo that lost its {missing[0]}; choose another folder: kit demo FOLDER")
    if trained_on_other_data(project, dataset):
        return f"found the demo in {project}, trained on other data; its checkpoints move to checkpoints/archive"
    return f"found the demo in {project}; training goes on where it stood"


def is_demo(project: Path) -> bool:
    """Whether a demo made this folder."""
    return _read_yaml(project / ".copier-answers.yml").get("project_name") == PROJECT_NAME


def trained_on_other_data(project: Path, dataset: str) -> bool:
    """Whether the checkpoint cannot be continued with `dataset`; train.py --fresh then sets it aside."""
    checkpoints = project / "checkpoints"
    return (checkpoints / "last.pt").exists() and _read_yaml(checkpoints / "config.yaml").get("dataset") != dataset


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file; empty if there is none."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _verify(console: Console, project: Path) -> Report:
    from verify.render import render_text
    from verify.runner import verify_model
    from verify.spec import SPEC_FILE, Spec, SpecError, load_spec

    with console.status("starting PyTorch") as status:
        try:
            spec = Spec(**load_spec(project / SPEC_FILE))
            report = verify_model(spec, folder=project, on_rule=lambda code, name: status.update(f"{code} {name}"))
        except (SpecError, ValueError) as error:
            raise DemoError(error) from None
    render_text(report, "kit verify", console.print)
    if not report.passed:
        page = _write_page(project, report, [])
        raise StepFailedError(f"the model was not verified, so it is not trained; details in {page}", report.exit_code)
    return report


def _run(console: Console, title: str, arguments: list[str], project: Path, environment: Mapping[str, str]) -> None:
    """Run a script of the project; its output goes where ours goes.

    Raises:
        StepFailedError: it ended with another exit code than 0.
    """
    child = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=project,
        env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C reaches only this process, which hands it on once: twice would end without saving
    )
    try:
        code = _wait(console, child, project)
    except BaseException:  # Ctrl-C, or nobody reads our output any more: the child must not be left behind
        _end(child)
        raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code < 0:
        raise StepFailedError(f"{title.lower()}: died of {signal.Signals(-code).name}", 128 - code)
    if code:
        raise StepFailedError(f"{title.lower()}: ended with exit code {code}, see above", code)


def _wait(console: Console, child: subprocess.Popen, project: Path) -> int:
    while True:
        try:
            return child.wait(HEARTBEAT)
        except subprocess.TimeoutExpired:
            if not sys.stderr.isatty():
                _say(console, training_state(project, child.pid))


def _end(child: subprocess.Popen) -> None:
    """Let the child finish its batch and save; another Ctrl-C ends it sooner."""
    for number, patience in ((signal.SIGINT, PATIENCE_TO_SAVE), (signal.SIGTERM, 5.0)):
        try:
            child.send_signal(number)
            child.wait(patience)
            return
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            continue
    child.kill()
    child.wait()


def training_state(project: Path, pid: int) -> str:
    """Where the training process `pid` stands, in one line; nothing if it does not train yet."""
    import json

    for path in project.glob("runs/*/status.json"):
        try:
            status = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # left empty by a power cut
        if status["pid"] == pid and status["state"] == "running":
            left = status["eta_seconds"]
            rest = "" if left is None else f", about {left:.0f} s left"
            return f"... batch {status['step']:,} of {status['steps']:,}{rest}"
    return ""


def _write_page(project: Path, report: Report, sections: list[Any]) -> Path:
    """Write report.html whole or not at all."""
    from verify.html import render_html

    page = project / "report.html"
    draft = page.with_name(".report.html")
    try:
        draft.write_text(render_html(report, "kit demo", sections), encoding="utf-8")
        draft.replace(page)
    finally:
        draft.unlink(missing_ok=True)
    return page


def _announce(console: Console, number: int, title: str, command: str) -> None:
    from rich.markup import escape

    console.print(f"\n[bold]{number}/{STEPS} {title}[/]  [dim]{escape(command)}[/]")


def _say(console: Console, line: str) -> None:
    if line:
        console.print(line, markup=False)


def _say_goodbye(console: Console, dest: Path, page: Path, run: Any, seconds: float) -> None:
    from rich.markup import escape

    console.print(f"\n[bold green]Done[/] in {seconds:.0f} s: [bold]{run.headline}[/]\n\nOpen")
    for path in (page, run.folder / "evaluation" / "test"):
        console.print(f"  {escape(str(path))}")
    console.print("\nNext")
    for line in next_commands(dest, run.config["dataset"], run.config["epochs"]):
        console.print(f"  {escape(line)}")


def next_commands(dest: Path, dataset: str, epochs: int) -> list[str]:
    """What to type now: with the interpreter that has everything, whether or not this shell finds it."""
    declared = _read_yaml(dest / "config.yaml").get("dataset")
    override = "" if declared == dataset else f" dataset={dataset}"
    python, kit, tensorboard = "python", "kit", "tensorboard"
    activate = Path(sys.executable).with_name("activate")
    preparation = []
    if not _python_is_on_path() and activate.is_file():
        preparation = [f". {shlex.quote(str(activate))}"]
    elif not _python_is_on_path():
        python = shlex.quote(sys.executable)
        kit, tensorboard = f"{python} -m kit", f"{python} -m tensorboard.main"
    return [
        *preparation,
        f"cd {shlex.quote(str(dest))}",
        f"{python} train.py --set epochs={2 * epochs}{override}   # goes on from the last checkpoint",
        f"{python} evaluate.py",
        f"{kit} verify",
        f"{tensorboard} --logdir runs",
        "claude   # then /train or /evaluate",
    ]


def _python_is_on_path() -> bool:
    """Whether typing `python` starts this interpreter."""
    found = shutil.which("python")
    # Not resolved: the python of a virtual environment is a link to one that lacks the packages.
    return found is not None and Path(found).absolute() == Path(sys.executable).absolute()
