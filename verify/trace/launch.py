"""Runs a training command under the eyes of the recorder, in a copy of the project, and collects the record."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from verify.trace.mirror import LEVELS_ABOVE, Mirror, put_back
from verify.trace.record import FORMAT, Record

HERE = Path(__file__).resolve().parent
KIT = HERE.parent.parent
POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0
LOG_KEPT = 200_000
CUDA_ERRORS = ("CUDA", "NVIDIA driver", "cuda", "No CUDA GPUs")
LARGER_CUT, MOST_ATTEMPTS = 4, 5
LATEST = 0.6  # of the time until a script is killed: then it is ended, however late its first batch came
# The probes are made when the second epoch begins, or after the first evaluation.
EPOCHS_BEFORE_PROBES = 3
SMALLEST_CUT = 2  # the first batch of an epoch and its last one


class WatchError(Exception):
    """The command cannot be watched; the text is one clear sentence."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How much of a run is really carried out.

    Args:
        train_batches, eval_batches: batches of each pass over a loader.
        max_epochs: passes over the training loader; 0 for all.
        compute_seconds: forward and backward passes before epochs are fast-forwarded.
        soft_seconds: after which the script is ended where it is.
        timeout: after which it is killed.
        probe_seconds: for all active probes together; 0 for none.
        stop_after, stop_steps: end the script after so many training epochs, or optimizer steps; 0 for never.
        resume: whether the script is started again to see whether it goes on where it stopped.
    """

    train_batches: int = 5
    eval_batches: int = 5
    max_epochs: int = 0
    compute_seconds: float = 20.0
    soft_seconds: float = 45.0
    timeout: float = 120.0
    probe_seconds: float = 25.0
    stop_after: int = 0
    stop_steps: int = 0
    resume: bool = True

    def within(self, timeout: float) -> Cut:
        """The same with another time to be killed after; the other limits keep their share of it.

        Args:
            timeout: seconds.
        """
        share = timeout / self.timeout
        return replace(
            self,
            timeout=timeout,
            compute_seconds=self.compute_seconds * share,
            soft_seconds=self.soft_seconds * share,
            probe_seconds=self.probe_seconds * share,
        )


QUICK = Cut(
    train_batches=3,
    eval_batches=3,
    compute_seconds=3.0,
    soft_seconds=7.0,
    timeout=30.0,
    probe_seconds=4.0,
    resume=False,
)
DEFAULT = Cut()
FULL = Cut(
    train_batches=16, eval_batches=16, compute_seconds=120.0, soft_seconds=220.0, timeout=300.0, probe_seconds=90.0
)


@dataclass(kw_only=True)
class Ended:
    """How a watched process ended."""

    code: int
    seconds: float
    log: str
    timed_out: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """Events of a kind."""
        return sum(event["kind"] == kind for event in self.events)

    def first(self, kind: str) -> dict[str, Any] | None:
        """The first event of a kind."""
        return next((event for event in self.events if event["kind"] == kind), None)


def watch(
    command: list[str],
    *,
    folder: Path | None = None,
    cut: Cut = DEFAULT,
    on_line: Callable[[str], None] = lambda line: None,
) -> Record:
    """Run a training command in time-lapse and record what it does.

    Args:
        command: as one would type it, in `folder`.
        folder: where to run it; the current folder by default.
        cut: how much of the run is carried out.
        on_line: called now and then with the last line that the script printed.

    Raises:
        WatchError: there is no such command.
    """
    folder = (folder or Path.cwd()).resolve()
    command = find_program(command, folder)
    started = time.monotonic()
    notes: list[str] = []
    fake_cuda, hidden = False, frozenset[str]()
    with_all: Ended | None = None  # the start that found earlier checkpoints
    with _interruptible(), tempfile.TemporaryDirectory(prefix="kit-watch-", ignore_cleanup_errors=True) as scratch:
        for attempt in range(MOST_ATTEMPTS):
            place = Path(scratch) / str(attempt)
            run = _Run(command, folder, place, cut, fake_cuda=fake_cuda, hidden=hidden)
            ended = run.go(on_line)
            left = cut.timeout - (time.monotonic() - started)
            if with_all and ended.code and not with_all.code:
                ended, hidden = with_all, frozenset()
                notes[-1] = (
                    "it continues from a file that it cannot do without; rules that count epochs see the rest alone"
                )
                break
            if not fake_cuda and _failed_for_cuda(ended):
                fake_cuda = True
                notes.append("this machine has no GPU: calls that ask for CUDA were kept on the CPU")
            elif _needs_larger_cut(ended, cut) and cut.train_batches < 256:
                size = cut.train_batches * LARGER_CUT
                cut = replace(cut, train_batches=size)
                notes.append(
                    f"the optimizer did not step in {size // LARGER_CUT} batches; epochs of {size} were watched"
                )
            elif ended.first("heavy"):
                cut = replace(cut, train_batches=SMALLEST_CUT, eval_batches=SMALLEST_CUT)
                notes.append("a heavy model: epochs were cut to their first batch and the last one")
            elif not hidden and (earlier := _earlier_checkpoints(ended, folder)):
                hidden, with_all = frozenset(earlier), ended
                notes.append(f"watched as a new run, without the earlier {', '.join(sorted(earlier)[:3])}")
            else:
                break
            if left < cut.timeout / 4:
                break
        left = cut.timeout - (time.monotonic() - started)
        if any(event.get("on") == "cuda" for event in ended.events if event["kind"] == "probe"):
            run = _Run(command, folder, Path(scratch) / "cpu", _for_probes(cut, left), fake_cuda=True, hidden=hidden)
            if _take_probes(ended, run.go(on_line)):
                notes.append("probed in a second start, on the CPU")
        events = _merge(ended, command, notes, cut, time.monotonic() - started)
        from verify.trace.resume import try_resume

        if cut.resume and ended.code == 0:
            number = iter(range(100))

            def start(words: list[str], limits: Cut, mirror: Mirror | None) -> tuple[Ended, Mirror]:
                place = Path(scratch) / f"again-{next(number)}"
                run = _Run(words, folder, place, limits, fake_cuda=fake_cuda, hidden=hidden, mirror=mirror)
                return run.go(on_line), run.mirror

            left = cut.timeout - (time.monotonic() - started)
            events += try_resume(ended, command, start, cut, left)
    events.append({"kind": "total", "seconds": round(time.monotonic() - started, 2)})
    return Record(events)


def _for_probes(cut: Cut, left: float) -> Cut:
    """The cut of a start that is made for its probes: short epochs, because a CPU takes the place of a GPU."""
    smallest = min(SMALLEST_CUT, cut.train_batches)
    seconds = max(left, cut.probe_seconds) / 2
    return replace(
        cut,
        train_batches=smallest,
        eval_batches=smallest,
        stop_after=EPOCHS_BEFORE_PROBES,
        soft_seconds=seconds,
        timeout=seconds,
        resume=False,
    )


def _take_probes(ended: Ended, other: Ended) -> bool:
    """Put what the probes of another start found in the place of what this one left out; whether there is any."""
    found = [event for event in other.events if event["kind"] == "probe" and "result" in event]
    if found:
        ended.events = [event for event in ended.events if event["kind"] != "probe"] + found
    return bool(found)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Being told to end is an interrupt, so that neither the script nor its copy outlives us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def find_program(command: list[str], folder: Path) -> list[str]:
    """The command with the right interpreter: `python` without torch is replaced by the kit's own.

    Args:
        folder: where it is to run.

    Raises:
        WatchError: there is nothing to run.
    """
    if not command:
        raise WatchError("nothing to watch: write the command after two dashes, as in kit watch -- python train.py")
    program = command[0]
    file = folder / program
    if program.endswith(".py") and file.is_file() and not os.access(file, os.X_OK):
        return [sys.executable, *command]
    name = Path(program).name
    is_python = name in ("python", "python3") and program == name
    own = str(Path(sys.executable).parent)
    found = shutil.which(program) or shutil.which(program, path=own) or shutil.which(str(file))
    if found is None and not is_python:
        raise WatchError(f"there is no program {program!r} to run")
    script = _script(command[1:]) if name.startswith("python") else None
    if script is not None and not (folder / script).exists():
        raise WatchError(f"there is no script {script!r} in {folder}")
    if is_python and (found is None or not _has_torch(found)):
        return [sys.executable, *command[1:]]
    return [str(found), *command[1:]]


def _script(arguments: list[str]) -> str | None:
    """The script among the arguments of an interpreter; None for a module, for code, and for none."""
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-W", "-X"):
            next(rest, None)
        elif argument.startswith(("-m", "-c")) or argument == "-":
            return None
        elif not argument.startswith("-"):
            return argument
    return None


def _has_torch(python: str) -> bool:
    if Path(python).resolve() == Path(sys.executable).resolve() and sys.prefix == sys.base_prefix:
        return True
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([python, "-c", question], capture_output=True, timeout=30).returncode == 0


class _Run:
    """One start of the command, in a copy of its own."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        place: Path,
        cut: Cut,
        *,
        fake_cuda: bool = False,
        hidden: frozenset[str] = frozenset(),
        mirror: Mirror | None = None,
    ) -> None:
        self.command, self.folder, self.place, self.cut = command, folder, place, cut
        self.events, self.backup = place / "events", place / "backup"
        for path in (self.events, self.backup):
            path.mkdir(parents=True)
        if mirror is None:
            (place / "copy").mkdir()
            mirror = Mirror(folder, place / "copy", hidden)
        self.mirror = mirror
        self.fake_cuda = fake_cuda

    def go(self, on_line: Callable[[str], None] = lambda line: None) -> Ended:
        """Run it to its end."""
        started = time.monotonic()
        settings = self.place / "settings.json"
        settings.write_text(json.dumps(self._settings()), encoding="utf-8")
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.write(master, b"\x04\x04\x04")  # whoever reads the standard input finds its end
        log = _Log(master)
        child = None
        try:
            child = subprocess.Popen(
                self._arguments(),
                cwd=self.mirror.copy,
                env=self._environment(settings),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
            os.close(slave)
            log.start()
            code, timed_out = self._wait(child, started, log, on_line)
        finally:
            if child is not None:
                _end_group(child)
            log.close()
            restored, made = put_back(self.backup, self.folder)
        return Ended(
            code=code,
            seconds=time.monotonic() - started,
            log=log.text(),
            timed_out=timed_out,
            events=_primary_events(self.events),
            restored=restored,
            made=made,
        )

    def _settings(self) -> dict[str, Any]:
        cut, now = self.cut, time.time()
        free = [
            tempfile.gettempdir(),
            str(Path.home() / ".cache"),
            sys.prefix,
            sysconfig.get_path("stdlib"),
            "/dev/shm",
        ]
        return {
            "folder": str(self.events),
            "scratch": str(self.mirror.copy),
            "root": str(self.mirror.root),
            "backup": str(self.backup),
            "free": [*free, str(self.place)],
            "mirrors": [(str(self.mirror.copy), str(self.folder))],
            "project": str(self.folder),
            "kept": str(_kept(self.folder, free)),
            "train_batches": cut.train_batches,
            "eval_batches": cut.eval_batches,
            "max_epochs": cut.max_epochs,
            "stop_after": cut.stop_after,
            "stop_steps": cut.stop_steps,
            "may_restart": cut.resume and max(cut.train_batches, cut.eval_batches) > SMALLEST_CUT,
            "compute_seconds": cut.compute_seconds,
            "deadline": now + cut.soft_seconds,
            "latest": now + LATEST * cut.timeout,
            "soft_seconds": cut.soft_seconds,
            "probes": cut.probe_seconds > 0,
            "probe_seconds": cut.probe_seconds,
            "fake_cuda": self.fake_cuda,
            "kit": str(KIT),
            "kit_packages": [sysconfig.get_path("purelib")],
        }

    def _arguments(self) -> list[str]:
        """The command, with absolute paths into the project led to the copy."""
        original = str(self.folder) + os.sep
        copy = str(self.mirror.copy) + os.sep
        return [part.replace(original, copy) if original in part else part for part in self.command]

    def _environment(self, settings: Path) -> dict[str, str]:
        paths = [str(HERE / "boot"), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "KIT_WATCH": str(settings),
            "PYTHONPATH": os.pathsep.join(paths).replace(str(self.folder), str(self.mirror.copy)),
            "PWD": str(self.mirror.copy),
            "PYTHONDONTWRITEBYTECODE": "1",
            **({"CUDA_VISIBLE_DEVICES": ""} if self.fake_cuda else {}),
            "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than all that is watched
            "MPLBACKEND": "Agg",  # no window, and plt.show() does not wait
            "WANDB_MODE": "disabled",
            "COMET_MODE": "disabled",
            "NEPTUNE_MODE": "offline",
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }

    def _wait(
        self, child: subprocess.Popen, started: float, log: _Log, on_line: Callable[[str], None]
    ) -> tuple[int, bool]:
        told = 0.0
        while True:
            try:
                code = child.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                pass
            elapsed = time.monotonic() - started
            if elapsed - told > 0.5:
                told = elapsed
                on_line(log.last_line())
            if elapsed > self.cut.timeout:
                return -int(signal.SIGKILL), True
        limit = time.monotonic() + self.cut.probe_seconds + GRACE_SECONDS
        while any(self.events.glob("probing-*")) and time.monotonic() < limit:
            time.sleep(POLL_SECONDS)
        return code, False


class _Log(threading.Thread):
    """Reads what the script prints, and keeps the end of it."""

    def __init__(self, master: int) -> None:
        super().__init__(daemon=True)
        self.master = master
        self.kept = b""

    def run(self) -> None:
        """Read until the terminal is closed."""
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            if not data:
                return
            self.kept = (self.kept + data)[-LOG_KEPT:]

    def last_line(self) -> str:
        """The last line that is not empty."""
        lines = self.text()[-500:].strip().splitlines()
        return lines[-1].strip() if lines else ""

    def text(self) -> str:
        """What was printed last."""
        return self.kept.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")

    def close(self) -> None:
        """Stop reading."""
        if self.ident is not None:
            self.join(0.5)
        with suppress(OSError):
            os.close(self.master)


def _kept(folder: Path, free: list[str]) -> Path:
    """The outermost of the folders around the project that are its surroundings, not a place for temporary files."""
    places = [Path(place).resolve() for place in free]
    kept = folder
    for parent in [*folder.parents][:LEVELS_ABOVE]:
        if any(place.is_relative_to(parent) for place in places):
            break
        kept = parent
    return kept


def _end_group(child: subprocess.Popen) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _primary_events(folder: Path) -> list[dict[str, Any]]:
    """The events of the process that trained: of all that were recorded, the one with the most steps."""
    found = []
    for file in sorted(folder.glob("events-*.jsonl")):
        events = _read(file)
        pid = file.stem.removeprefix("events-")
        events += _read(folder / f"probes-{pid}.jsonl")
        if any(folder.glob(f"probing-{pid}-*")):
            events.append({"kind": "probe", "name": "all", "skipped": "the probes took too long"})
        weight = sum(event["kind"] in ("step", "backward", "pass") for event in events)
        found.append((weight, len(events), events))
    if not found:
        return []
    found.sort(key=lambda item: item[:2])
    return found[-1][2]


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _failed_for_cuda(ended: Ended) -> bool:
    crash = ended.first("crash")
    if crash is None or not ended.code:
        return False
    text = f"{crash['error']} {crash['more']}"
    return any(word in text for word in CUDA_ERRORS) and bool(ended.first("cuda_asked") or "cuda" in text.lower())


def _needs_larger_cut(ended: Ended, cut: Cut) -> bool:
    """Many backward passes, no step, and the passes over the loader were cut: gradients are gathered for longer."""
    if ended.count("step") or not ended.count("backward"):
        return False
    trained = [e for e in ended.events if e["kind"] == "iter_end" and e["backwards"]]
    return any(e["length"] is None or e["length"] > e["limit"] for e in trained)


def _earlier_checkpoints(ended: Ended, folder: Path) -> list[str]:
    """Files of the project from which the run went on instead of beginning, and those beside them.

    A run without a training step was finished already. Others loaded the state of an optimizer before their first step.
    """
    loads = [e for e in ended.events if e["kind"] == "load" and e.get("path") and not e["own"]]
    if ended.count("step") or ended.count("backward"):
        loads = [e for e in loads if e["step"] == 0 and _holds_optimizer(e["content"])]
    elif ended.code:
        return []
    paths = [path for e in loads if not (path := Path(e["path"])).is_absolute() and (folder / path).is_file()]
    # Without the last one, the script may fall back on another.
    named = [path for path in paths if path.suffix]
    beside = [file.relative_to(folder) for path in named for file in (folder / path.parent).glob(f"*{path.suffix}")]
    return list(dict.fromkeys(map(str, [*paths, *beside])))


def _holds_optimizer(content: Any) -> bool:
    """Whether what a file holds has the state of an optimizer in it."""
    if not isinstance(content, dict):
        return False
    return content.get("kind") == "optimizer" or any(map(_holds_optimizer, (content.get("keys") or {}).values()))


def _merge(ended: Ended, command: list[str], notes: list[str], cut: Cut, seconds: float) -> list[dict[str, Any]]:
    run = {
        "kind": "run",
        "format": FORMAT,
        "command": command,
        "code": ended.code,
        "seconds": round(seconds, 2),
        "timed_out": ended.timed_out,
        "log": ended.log[-4000:],
        "notes": notes,
        "restored": ended.restored,
        "made": ended.made,
        "train_batches": cut.train_batches,
        "eval_batches": cut.eval_batches,
    }
    return [run, *ended.events]
