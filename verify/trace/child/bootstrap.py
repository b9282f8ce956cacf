"""Starts the recorder in a process of a watched run: hooks into modules when the user's code imports them."""

from __future__ import annotations

import atexit
import builtins
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import files
from .events import Places, Writer

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?%?")
CONFIG_SUFFIXES = (".yaml", ".yml", ".json", ".toml", ".ini", ".cfg")
LARGEST_SOURCE = 300_000
MOST_SIBLINGS = 200
# Seconds between the start of a thread and the call of join, on a machine that is busy with other things.
JOINS_WITHIN = 0.5
SKIPPED = ("venv", "env", "node_modules", "__pycache__", "site-packages", "build", "dist")


class InputWantedError(EOFError):
    """The script asks for input in a watched run, where nobody answers."""


class AfterImport(MetaPathFinder, Loader):
    """Calls a function once after a module was imported."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]) -> None:
        self.actions = actions
        self._busy: set[str] = set()
        self._loaders: dict[str, Loader] = {}

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Let the other finders find the module, and put ourselves in front of its loader."""
        if name not in self.actions or name in self._busy:
            return None
        self._busy.add(name)
        try:
            from importlib.util import find_spec

            spec = find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        finally:
            self._busy.discard(name)
        if spec is None or spec.loader is None:
            return None
        self._loaders[name] = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then what was to follow."""
        name = module.__spec__.name if module.__spec__ else module.__name__
        loader = self._loaders[name]
        if module.__spec__:
            module.__spec__.loader = loader
        module.__loader__ = loader
        loader.exec_module(module)
        action = self.actions.pop(name, None)
        if action:
            action(module)

    def get_filename(self, name: str) -> str:
        """Some tools ask a loader for its file."""
        return self._loaders[name].get_filename(name)  # type: ignore[attr-defined, no-any-return]


class Session:
    """What all hooks of this process share: settings, the writer, and the places in the user's code."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.places = Places(settings["mirrors"], settings["project"])
        self.writer = Writer(settings["folder"])
        self.emit = self.writer.emit
        self.main_thread = threading.get_ident()
        self.threads_seen: set[int] = set()
        self.configs: dict[str, None] = {}
        self.written: set[str] = set()
        self.recorder: Any = None
        self.main_file: str | None = None
        self.talking = False  # whether printed numbers are of interest: an evaluation has just ended

    @property
    def is_recording(self) -> bool:
        """Whether this is the process and the thread whose training is recorded."""
        return os.getpid() == self.writer.pid and threading.get_ident() == self.main_thread

    def follow_thread(self) -> bool:
        """Record this thread instead of the main one, if that only waits for threads and nothing was trained in it."""
        if self.is_recording:
            return True
        main, recorder = threading.main_thread().ident, self.recorder
        if os.getpid() != self.writer.pid or self.main_thread != main or recorder.step or recorder.pending:
            return False
        until = time.monotonic()
        if threading.get_ident() not in self.threads_seen:
            self.threads_seen.add(threading.get_ident())
            until += JOINS_WITHIN
        while not _is_joining(main):
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        self.main_thread = threading.get_ident()
        return True

    def note_text(self, text: str, source: str) -> None:
        """Keep the numbers of a printed line that may report an evaluation."""
        if self.talking and self.is_recording and NUMBER.search(text):
            self.emit("said", text=text[-300:], source=source, loc=self.places.here())

    def write_sources(self) -> None:
        """Write down the project's own source and configuration files that were used so far."""
        paths = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        for path in [self.main_file, *paths, *list(self.configs)]:
            if not isinstance(path, str):
                continue
            real = os.path.realpath(path)
            if real in self.written or not os.path.isfile(real):
                continue
            self.written.add(real)
            name = self.places._name(real)
            if not name or os.path.isabs(name) or not real.endswith((".py", *CONFIG_SUFFIXES)):
                continue
            if os.path.getsize(real) <= LARGEST_SOURCE:
                with open(real, encoding="utf-8", errors="replace") as file:
                    self.emit("source", path=name, text=file.read())
        for path in _python_files(self.settings["scratch"]):
            real = os.path.realpath(path)
            if real not in self.written and os.path.isfile(real) and os.path.getsize(real) <= LARGEST_SOURCE:
                self.written.add(real)
                with open(real, encoding="utf-8", errors="replace") as file:
                    self.emit("sibling", path=self.places._name(real), text=file.read())


def _is_joining(ident: int | None) -> bool:
    """Whether a thread waits for another one to end."""
    frame = sys._current_frames().get(ident or 0)
    for _ in range(3):
        if frame is not None and frame.f_code.co_name == "join" and frame.f_globals.get("__name__") == "threading":
            return True
        frame = frame.f_back if frame is not None else None
    return False


def _python_files(folder: str) -> list[str]:
    """The Python files of a project, without those of environments and of version control."""
    found: list[str] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in SKIPPED]
        found += [os.path.join(root, name) for name in names if name.endswith(".py")]
        if len(found) > MOST_SIBLINGS:
            break
    return found[:MOST_SIBLINGS]


def start(settings_file: str) -> None:
    """Read the settings and install what needs no torch; torch is hooked when it is imported."""
    with open(settings_file, encoding="utf-8") as file:
        settings = json.load(file)
    if _is_tool(sys.argv if hasattr(sys, "argv") else []):
        return
    session = Session(settings)
    files.guard(session)
    _hook_input(session)
    _hook_print(session)
    actions: dict[str, Callable[[ModuleType], None]] = {
        "torch": lambda module: _install_torch(session),
        "argparse": lambda module: _hook_argparse(module, session),
        "logging": lambda module: _hook_logging(module, session),
        "torch.utils.tensorboard.writer": lambda module: _hook_tensorboard(module, session),
    }
    for name in list(actions):
        if name in sys.modules:
            actions.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, AfterImport(actions))
    _hook_crash(session)
    atexit.register(_at_exit, session)


def _is_tool(argv: list[str]) -> bool:
    """Processes that are no part of the training: the resource tracker and fork server of multiprocessing."""
    return any("multiprocessing.resource_tracker" in part or "multiprocessing.forkserver" in part for part in argv)


def _install_torch(session: Session) -> None:
    from . import torch_hooks

    # Gone from its module by the time the process ends, and relative to a folder that the script may leave.
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    session.main_file = os.path.abspath(file) if file else None
    torch_hooks.install(session)


def _at_exit(session: Session) -> None:
    if os.getpid() != session.writer.pid:
        return
    if session.recorder:
        session.recorder.finish()
        session.recorder.release()
    session.writer.flush()


def _hook_crash(session: Session) -> None:
    original = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if os.getpid() == session.writer.pid and issubclass(kind, (Exception, KeyboardInterrupt)):
            session.emit("crash", **_describe_crash(session, error, trace))
            session.writer.flush()
        original(kind, error, trace)

    sys.excepthook = hook


def _describe_crash(session: Session, error: BaseException, trace: Any) -> dict[str, Any]:
    places, library = [], ""
    while trace is not None:
        code = trace.tb_frame.f_code
        name = session.places.file(code)
        if name:
            places.append(f"{name}:{trace.tb_lineno}")
        library = code.co_filename
        trace = trace.tb_next
    message = (str(error).strip() or "no message").splitlines()
    own = [place for place in places if not os.path.isabs(place)]
    module = getattr(error, "name", None) if isinstance(error, ImportError) else None
    return {
        "error": type(error).__name__,
        "message": message[0][:500],
        "more": "\n".join(message[:20])[:2000],
        "loc": (own or places or [""])[-1],
        "stack": places[-6:],
        "module": module,
        "in_recorder": library.startswith(os.path.dirname(os.path.abspath(__file__))),
    }


def _hook_input(session: Session) -> None:
    def no_input(prompt: object = "", /) -> str:
        session.emit("input", prompt=str(prompt)[:200], loc=session.places.here())
        raise InputWantedError("the script waits for input, and a watched run has nobody to answer")

    builtins.input = no_input


def _hook_print(session: Session) -> None:
    original = builtins.print

    def print_and_note(*values: object, **options: Any) -> None:
        if session.talking and values:
            session.note_text(" ".join(map(str, values)), "print")
        original(*values, **options)

    builtins.print = print_and_note


def _hook_logging(logging: ModuleType, session: Session) -> None:
    original = logging.Logger.handle

    def handle(logger: Any, record: Any) -> None:
        if session.talking:
            with suppress(Exception):  # a wrong format string is the user's business, and logging reports it
                session.note_text(record.getMessage(), "logging")
        original(logger, record)

    logging.Logger.handle = handle


def _hook_tensorboard(module: ModuleType, session: Session) -> None:
    original = module.SummaryWriter.add_scalar

    def add_scalar(writer: Any, tag: str, scalar_value: Any, *args: Any, **options: Any) -> Any:
        if session.talking:
            session.note_text(f"{tag} {_number(scalar_value)}", "tensorboard")
        return original(writer, tag, scalar_value, *args, **options)

    module.SummaryWriter.add_scalar = add_scalar


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _hook_argparse(argparse: ModuleType, session: Session) -> None:
    original = argparse.ArgumentParser.parse_known_args

    def parse_known_args(parser: Any, *args: Any, **options: Any) -> Any:
        result = original(parser, *args, **options)
        if session.is_recording:
            session.emit("argparse", options=[_option(a) for a in parser._actions], loc=session.places.here())
        return result

    argparse.ArgumentParser.parse_known_args = parse_known_args


def _option(action: Any) -> dict[str, Any]:
    return {
        "dest": action.dest,
        "flags": list(action.option_strings),
        "type": getattr(action.type, "__name__", None),
        "default": repr(action.default)[:80],
        "takes_value": action.nargs != 0,
        "action": type(action).__name__,
    }
