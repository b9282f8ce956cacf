"""How a measurement is tried: within its share of the time, and with a reason where it cannot be made."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

Json = dict[str, Any]
MOST_SECONDS = 10.0
SHARE_OF_TIME = 0.5  # other probes come after these


class Unavailable(Exception):  # noqa: N818 - an answer, not an error
    """A measurement that this run does not allow; the text says why."""


class Clock:
    """The time that is left for all probes together."""

    def __init__(self, deadline: float) -> None:
        now = time.monotonic()
        total = min(MOST_SECONDS, SHARE_OF_TIME * (deadline - now))
        self.deadline = now + total
        self.pace = total / MOST_SECONDS

    def left(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()

    def until(self, seconds: float) -> float:
        """The deadline of one probe that may take `seconds` when there is time enough for all."""
        return min(self.deadline, time.monotonic() + seconds * self.pace)


def attempt(part: Callable[[], Any]) -> Any:
    """What a measurement gives, or why there is none under `skipped`."""
    try:
        return part()
    except Unavailable as why:
        return {"skipped": str(why)}
    except Exception as error:  # whatever the user's dataset raises is a reason to skip
        return {"skipped": f"{type(error).__name__}: {str(error)[:200]}"}


def attempt_each(views: list[Any], part: Callable[[Any], Any]) -> list[Any]:
    """One measurement of each loader."""
    return [attempt(partial(part, view)) for view in views]
