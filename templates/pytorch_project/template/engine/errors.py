"""A mistake that the user can mend, and how every script of the project reports one."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from engine.startup import interrupt_normally

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_USE, EXIT_INTERRUPTED = 0, 1, 2, 130


class UserError(Exception):
    """Wrong input or surroundings; the text is one clear sentence: what, where, how to mend it."""


class TrainingFailedError(Exception):
    """Training cannot go on; the text is one clear sentence."""


def run_script(main: Callable[[], int]) -> int:
    """Run `main` and turn what a user can cause into one line on stderr; the exit code of the script."""
    interrupt_normally()
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WRONG_USE
    except TrainingFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except torch.OutOfMemoryError as error:
        print(f"error: {str(error).splitlines()[0]} Use a smaller batch_size.", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone (`python train.py | head`): nothing is left to say, and nobody to say it to.
        sys.stdout = None
        return EXIT_FAILED
    except OSError as error:
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return EXIT_WRONG_USE


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing in this block say which file it was; a full disk alone does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def describe_os_error(error: OSError) -> str:
    """`runs/x/metrics.jsonl: No space left on device`, without the error number and quotes."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
