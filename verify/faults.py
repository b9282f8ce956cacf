"""What the user's code can do to us while we run it, and where in that code it happened."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = str(Path(__file__).resolve().parent) + os.sep
LIBRARY_FOLDERS = tuple(
    str(Path(folder).resolve()) + os.sep
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
)
# Who reports what the model's code raises.
BUILD_RULE, FORWARD_RULE, TRAINING_RULE = "MOD101", "MOD102", "GRD301"


class UnavailableError(Exception):
    """Something that another rule reports already stands in the way of this one; the text says which."""


class ModelRaisedError(Exception):
    """The model's own code raised.

    Attributes:
        phase: what was being done, such as `in forward at batch 1`.
        rule: code of the rule whose business that is; to the others it only stands in the way.
        summary: type and first line of the exception.
        location: `file:line` of the deepest frame that is the user's.
    """

    def __init__(self, phase: str, rule: str, error: BaseException) -> None:
        message = (str(error).strip() or "no message").splitlines()[0]
        self.phase = phase
        self.rule = rule
        self.summary = f"{type(error).__name__}: {message}"
        self.location = where_raised(error)
        super().__init__(f"{self.summary} ({phase})")


class ModelExitedError(Exception):
    """The model's own code called `sys.exit`, which would have ended the user's program too."""

    def __init__(self, phase: str, code: object) -> None:
        self.phase = phase
        super().__init__(f"the model's code called sys.exit({'' if code is None else repr(code)}) {phase}")


@contextmanager
def user_code(phase: str, rule: str) -> Iterator[None]:
    """Run the user's code inside; whatever it raises comes out as one of the two exceptions above.

    Args:
        phase: what is being done, for the message.
        rule: code of the rule that reports it if it raises.
    """
    try:
        yield
    except SystemExit as error:
        raise ModelExitedError(phase, error.code) from error
    except (ModelRaisedError, ModelExitedError):
        raise
    except Exception as error:
        raise ModelRaisedError(phase, rule, error) from error


def where_raised(error: BaseException) -> str:
    """`file:line` of the deepest frame outside the libraries and the verifier, or nothing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    return f"{_short(own[-1].filename)}:{own[-1].lineno}" if own else ""


def _is_library(filename: str) -> bool:
    path = str(Path(filename).resolve())
    return filename.startswith("<") or path.startswith(LIBRARY_FOLDERS) or path.startswith(HERE)


def _short(filename: str) -> str:
    try:
        return str(Path(filename).resolve().relative_to(Path.cwd()))
    except ValueError:
        return filename


def class_location(cls: type) -> str:
    """`file:line` of the class's forward if it is the user's, else nothing; cheap, as it reads no source file."""
    function = getattr(cls, "forward", None)  # its own, or the one that it inherits
    forward = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    if forward is not None and "forward" not in vars(cls) and _is_library(forward.co_filename):
        forward = None
    filename = forward.co_filename if forward else getattr(sys.modules.get(cls.__module__), "__file__", None)
    if not filename or _is_library(filename):
        return ""
    return f"{_short(filename)}:{forward.co_firstlineno}" if forward else _short(filename)
