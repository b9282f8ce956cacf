"""Errors of the recorder itself are written down and never reach the script."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from typing import Any


def quiet(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the recorder whose own errors are written down and never reach the script."""

    @functools.wraps(method)
    def call(recorder: Any, *args: Any, **options: Any) -> Any:
        try:
            return method(recorder, *args, **options)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(place.filename)}:{place.lineno}"
            recorder.emit("recorder_error", method=method.__name__, error=f"{type(error).__name__}: {error}", at=where)
            return None

    return call
