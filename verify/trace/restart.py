"""How a script is asked to resume: by which options, from which of its files, and after how many epochs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verify.report import plural
from verify.trace.record import Event, Record

RESUME_WORDS = re.compile(r"resum|start_epoch|restore|continu(e|ing)\b.*\b(from|where)|ckpt_path", re.IGNORECASE)
LATEST_STOP = 12
RESUMED_EPOCHS = 2  # the optimizer brings its rate along; that the schedule does not go on shows in the second
FEWEST_EPOCHS = 3  # one to stop after, one to compare with, and one so that the best need not be the last

# Options. What says "resume" may be a switch; "checkpoint" and "load" are also said of saving and of data.
RESUMING = ("resume", "resuming", "restore", "continue")
LOADING = ("ckpt", "checkpoint", "load")
PATH_WORDS = {"path", "file", "filename", "from"}
# Options with such words in their names are about something else: how often to save, where, what to begin with.
OTHERS = re.compile(
    "every|each|freq|frequency|interval|period|saves?|saving|keep|total|grad|gradients?|activations?|dir|directory|folder|"
    "root|id|wandb|pretrained|weights|backbone|workers|data|dataset|format|strategy|epochs?|steps?|iter"
)
NUMBERS = ("int", "float")
EMPTY = ("None", "''", '""', "False")
SWITCH = re.compile(r"bool", re.IGNORECASE)

# What a checkpoint holds, beside the weights, for the one who resumes from it.
PROGRESS = re.compile(r"^((start|last|cur|current|global)_?)?(epochs?|iters?|iterations?|steps?)(_?(idx|num|no))?$")
OPTIMIZER = re.compile(r"optim|^opts?$", re.IGNORECASE)
SCHEDULE = re.compile(r"sched", re.IGNORECASE)
NEGATIVE = re.compile(r"^--?(no|dont|skip|disable|without)[-_]?(auto|resum|restor|continu|load|ckpt|checkpoint)")
WORTH = {"optimizer": 4, "scheduler": 2, "progress": 2, "scaler": 1}


def held(content: Any, depth: int = 2) -> set[str]:
    """Which of `WORTH` a checkpoint holds.

    Args:
        content: the description of what was saved.
    """
    if not isinstance(content, dict) or content.get("kind") != "dict":
        return set()
    found: set[str] = set()
    for key, inner in (content.get("keys") or {}).items():
        kind = inner.get("kind") if isinstance(inner, dict) else None
        if kind in WORTH:
            found.add(str(kind))
        elif kind == "value" and type(inner["value"]) is int and PROGRESS.match(str(key).lower()):
            found.add("progress")
        elif kind in ("dict", "other"):  # a list of several, or a state of one's own
            named = {"optimizer": OPTIMIZER.search(str(key)), "scheduler": SCHEDULE.search(str(key))}
            found |= {name for name, match in named.items() if match}
            found |= held(inner, depth - 1) if depth else set()
    return found


def worth(content: Any) -> int:
    """How much of what resuming needs a checkpoint holds beside the weights."""
    return sum(WORTH[name] for name in held(content))


# -- when to stop --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """After how many epochs the script is stopped, to be resumed; 0 for not at all, with the reason."""

    stop: int = 0
    reason: str = ""


def plan(record: Record) -> Plan:
    """When to stop, so that the file to resume from is there, and the best is not the last.

    Args:
        record: the run that was not interrupted.
    """
    saves, count = record.of("save"), len(record.epochs)
    if not saves and count >= FEWEST_EPOCHS:
        return Plan(reason="the script saves nothing that it could resume from")
    if resume_option(record) is None and not speaks_of_resuming(record):
        return Plan(reason="no option and no word of the source speaks of resuming")
    if count < FEWEST_EPOCHS:
        few = f"{plural(count, 'training epoch')} of the script {'was' if count == 1 else 'were'} seen"
        return Plan(reason=f"{few}; resuming is tried where there are at least {FEWEST_EPOCHS}")
    planned = _stop(record, min(LATEST_STOP, max(2, count - RESUMED_EPOCHS)))
    return planned if planned.stop else _stop(record, min(LATEST_STOP, count - 1))


def _stop(record: Record, latest: int) -> Plan:
    saves = record.of("save")
    early = [e for e in saves if not e["fast"] and e["epoch"] < latest]
    richest = max((e for e in saves), key=lambda e: _rank(e["content"]))
    if not early or _rank(richest["content"]) > max(_rank(e["content"]) for e in early):
        return Plan(reason=_too_late(saves, richest, latest))
    most = max(worth(e["content"]) for e in early)
    fullest = [e for e in early if worth(e["content"]) == most]
    # Where there are both, what is saved every few epochs is meant to be resumed from, and best.pt is a substitute.
    first = min(e["epoch"] for e in [e for e in fullest if not _is_best(e)] or fullest) + 1
    best = {e["epoch"] + 1 for e in saves if not e["fast"] and _is_best(e)}
    for epochs in range(max(2, first), latest + 1):
        if best and epochs not in best and min(best) < epochs:
            return Plan(epochs)
    return Plan(min(max(2, first), latest))


def _rank(content: Any) -> int:
    """2: with an optimizer, 1: with an epoch or a schedule, 0: weights alone, or nothing that is known."""
    holds = held(content)
    return 2 if "optimizer" in holds else 1 if holds else 0


def _too_late(saves: list[Event], richest: Event, latest: int) -> str:
    alike = [e for e in saves if _rank(e["content"]) == _rank(richest["content"])]
    first = min(alike, key=lambda e: e["epoch"])
    what = f"{first['path']}, the file to resume from, is first saved after {plural(first['epoch'] + 1, 'epoch')}"
    if first["epoch"] < latest:
        return f"{what}, when only evaluation, schedule and checkpoints were carried on"
    return f"{what}, and the second start is stopped after {latest} at most"


def _is_best(save: Event) -> bool:
    return "best" in save["path"].lower()


def speaks_of_resuming(record: Record) -> bool:
    """Whether the source has a word for it."""
    return any(RESUME_WORDS.search(text) for path, text in record.sources.items() if path.endswith(".py"))


# -- how to ask ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restart:
    """The command that resumes.

    Args:
        asked: whether an option to resume was added to the command.
        option: its name. file: the checkpoint that it names; empty where the script finds its own.
        content: the description of that file.
        reason: why there is no such command.
    """

    command: list[str]
    asked: bool = False
    option: str = ""
    file: str = ""
    content: Any = None
    reason: str = ""

    @property
    def is_said(self) -> bool:
        """Whether the option says "resume", so that a start that loads nothing is a broken promise."""
        return self.asked and any(word in self.option for word in RESUMING)


def restart(command: list[str], whole: Record, first: Record, copy: Path | None) -> Restart:
    """How the script is asked to go on.

    Args:
        whole: the run that was not interrupted. first: the one that was stopped.
        copy: the folder that the latter has left its files in.
    """
    option = resume_option(whole)
    if option is None or any(w == flag or w.startswith(f"{flag}=") for w in command for flag in option["flags"]):
        return Restart(command)
    flag = _flag(option)
    companion = None if _takes_path(option) else _companion(whole, option)
    words = [*command, flag, *(["True"] if _is_switch_with_value(option) else [])]
    if not _takes_path(option) and companion is None:
        return Restart(words, asked=True, option=flag)
    save = checkpoint_of(first, copy)
    if save is None:
        return Restart(command, reason=f"the run that was stopped left no file for {flag}")
    if not any(word in flag for word in RESUMING) and not worth(save["content"]):
        return Restart(command, reason=f"{save['path']} holds weights alone, and {flag} does not speak of resuming")
    words += [_flag(companion)] if companion else []
    return Restart([*words, save["path"]], True, flag, save["path"], save["content"])


def checkpoint_of(record: Record, copy: Path | None) -> Event | None:
    """The last save of the file that holds most of what resuming needs; of equals, the one that is named so.

    Args:
        copy: where the files are, for those that were deleted since.
    """
    files = {e["path"]: (n, e) for n, e in enumerate(record.of("save"))}
    if copy is not None:
        files = {path: found for path, found in files.items() if (copy / path).is_file()}
    ranked = [(worth(e["content"]), _named(path), n, e) for path, (n, e) in files.items()]
    return max(ranked, key=lambda item: item[:3])[3] if ranked else None


def _named(path: str) -> int:
    name = Path(path).name.lower()
    if "best" in name:
        return 0
    return 3 if "last" in name or "latest" in name else 2 if "checkpoint" in name or "ckpt" in name else 1


def resume_option(record: Record) -> Event | None:
    """The command line option that resumes, if there is one."""
    options = [o for event in record.of("argparse") for o in event["options"] if _may_resume(o)]
    for word in (*RESUMING, *LOADING):
        fits = [o for o in options if any(word in flag for flag in o["flags"])]
        fits.sort(key=lambda o: not any(flag.strip("-") == word for flag in o["flags"]))
        if fits:
            return dict(fits[0])
    return None


def _may_resume(option: Event) -> bool:
    said, words = " ".join(option["flags"]).lower(), _words(option)
    if option.get("type") in NUMBERS or option.get("action") == "_StoreFalseAction":
        return False
    if (
        any(OTHERS.fullmatch(word) for word in words)
        or ("restore" in words and "best" in words)
        or not _positive(option)
    ):
        return False
    if any(word in said for word in RESUMING):
        return "dir" not in option["dest"]
    if _is_switch_with_value(option):
        return False
    if option["takes_value"]:  # with a default it says where checkpoints are kept, not that one is to be loaded
        return bool(words & set(LOADING)) and "dir" not in option["dest"] and option.get("default", "None") in EMPTY
    return "load" in words and words <= {"load", "model", "state", "checkpoint", "ckpt", "last", "latest", "l"}


def _words(option: Event) -> set[str]:
    return {word for flag in _positive(option) for word in re.split(r"[-_.]+", flag.lower()) if word}


def _positive(option: Event) -> list[str]:
    """The spellings that switch it on: `--no-resume` beside `--resume` switches it off."""
    return [flag for flag in option["flags"] if not NEGATIVE.match(flag)]


def _flag(option: Event) -> str:
    return max(_positive(option) or option["flags"], key=len)


def _is_switch_with_value(option: Event) -> bool:
    """`type=bool`: it takes a value, which is no path."""
    return bool(option["takes_value"] and SWITCH.search(option.get("type") or ""))


def _takes_path(option: Event) -> bool:
    return bool(option["takes_value"]) and not _is_switch_with_value(option)


def _companion(record: Record, switch: Event) -> Event | None:
    """The option that says which file, where another one says that it is to be resumed from."""
    found = [o for o in _companions(record) if o["flags"] != switch["flags"]]
    found.sort(key=lambda o: not any(word in flag for flag in o["flags"] for word in RESUMING))
    return found[0] if found else None


def _companions(record: Record) -> Iterator[Event]:
    for event in record.of("argparse"):
        for option in event["options"]:
            words = _words(option)
            named = words & {*RESUMING, *LOADING} and words & PATH_WORDS
            if named and _may_resume(option) and _takes_path(option) and option.get("default", "None") in EMPTY:
                yield option
