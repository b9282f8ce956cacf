"""What a watched run did: the events that the recorder wrote, and views of them that rules ask for."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

Event = dict[str, Any]
# Of what is recorded. Grows when events get fields that a rule cannot do without.
FORMAT = 2


class NotSeenError(Exception):
    """The run shows nothing that a rule could judge; the text says what is missing. The rule is skipped."""


@dataclass
class Iteration:
    """One pass over a DataLoader.

    Attributes:
        role: `train` if a backward pass or an optimizer step happened in it, `eval` if a model ran, else `other`.
        counts: batches, forwards, backwards, steps.
        exhausted: the script asked for batches until there were none.
        limit: batches at most, by the time-lapse. length: batches without it, None if unknown.
    """

    number: int
    loader: int
    role: str
    counts: dict[str, int]
    exhausted: bool
    limit: int
    length: int | None
    loc: str
    begin: int
    end: int


@dataclass
class Evaluation:
    """One evaluation: the forward passes that were not trained on, between two trainings.

    Attributes:
        passes: the `pass` events, in order.
        values: numbers in the script's variables right after it, by name.
        said: lines that the script printed or logged right after it.
        after: index of the last backward pass before it.
        beside: whether others follow or precede it without training in between; they share their values then.
    """

    loader: int | None
    passes: list[Event]
    begin: int
    end: int
    values: dict[str, float] = field(default_factory=dict)
    values_loc: str = ""
    said: list[Event] = field(default_factory=list)
    after: int = -1
    beside: bool = False

    @property
    def samples(self) -> int:
        """How many samples were evaluated."""
        return sum(p["n"] for p in self.passes)

    @property
    def accuracy(self) -> float | None:
        """Share of samples whose largest logit is the target, 0 to 1."""
        if not self.passes or any("correct" not in p for p in self.passes) or not self.samples:
            return None
        return float(sum(p["correct"] for p in self.passes) / self.samples)

    @property
    def batch_losses(self) -> list[tuple[float, int]] | None:
        """(mean loss, samples) of each batch; None where a loss is missing or is not a mean or sum."""
        found = []
        for p in self.passes:
            if len(p["losses"]) != 1 or not isinstance(p["losses"][0], int | float) or not p["n"]:
                return None
            if p["reductions"][0] not in ("mean", "sum"):
                return None
            scale = p["n"] if p["reductions"][0] == "sum" else 1
            found.append((p["losses"][0] / scale, p["n"]))
        return found or None

    @property
    def loss(self) -> float | None:
        """Mean loss over samples."""
        losses = self.batch_losses
        if losses is None:
            return None
        return sum(value * n for value, n in losses) / sum(n for _, n in losses)


class Record:
    """The events of a run, in order.

    Args:
        events: dicts with at least `kind`; docs/record.md lists the kinds.
    """

    def __init__(self, events: list[Event]) -> None:
        self.events = _renamed(events)
        self._kinds: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            self._kinds[event["kind"]].append(event)

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record file: one JSON object a line.

        Raises:
            ValueError: it is not a record.
        """
        with path.open(encoding="utf-8") as file:
            events = [json.loads(line) for line in file if line.endswith("\n")]
        if not events or not all(isinstance(event, dict) and "kind" in event for event in events):
            raise ValueError("it holds no events")
        return cls(events)

    def save(self, path: Path) -> None:
        """Write the record, to be judged again later."""
        text = "".join(json.dumps(event) + "\n" for event in self.events)
        path.write_text(text, encoding="utf-8")

    def of(self, *kinds: str) -> list[Event]:
        """The events of some kinds, in order."""
        if len(kinds) == 1:
            return self._kinds.get(kinds[0], [])
        return [event for event in self.events if event["kind"] in kinds]

    # -- the run as a whole -----------------------------------------------------------------------------------------

    @property
    def run(self) -> Event:
        """How the command ended."""
        return (self.of("run") or [{"command": [], "code": 0, "log": "", "notes": [], "timed_out": False}])[0]

    @property
    def command(self) -> str:
        """The command, as one would type it."""
        words = list(self.run["command"])
        if words:
            words[0] = Path(words[0]).name
        return shlex.join(words)

    @property
    def torch(self) -> str:
        """The version of torch in the run."""
        return str((self.of("torch") or [{"version": ""}])[0]["version"])

    @property
    def device(self) -> str:
        """The device of the run."""
        return "cuda" if (self.of("torch") or [{"cuda": False}])[0]["cuda"] else "cpu"

    @property
    def seconds(self) -> float:
        """Seconds that watching took."""
        return float((self.of("total") or [{"seconds": 0.0}])[0]["seconds"])

    @property
    def is_old(self) -> bool:
        """Whether an earlier kit made it, so that it may lack what a rule needs."""
        return int(self.run.get("format", 1)) < FORMAT

    @property
    def notes(self) -> list[str]:
        """What a reader of the report must know about how the run was watched."""
        run, notes = self.run, list(self.run["notes"])
        cut = [e for e in self.of("iter_end") if e["length"] is None or e["length"] > e["limit"]]
        if cut:
            notes.append(
                f"time-lapse: at most {max(e['limit'] for e in cut)} batches of an epoch, the last one among them"
            )
        for event in self.of("fast"):
            after = f"{event['epoch']} epochs" if event["epoch"] else f"{event['step']} steps of a heavy model"
            notes.append(f"after {after} only evaluation, schedule, checkpoints and stopping were carried on")
        for event in self.of("ended"):
            if event["why"] == "time":
                steps = f"{event['step']} step{'s' * (event['step'] != 1)}"
                notes.append(f"ended after {steps}, when the time for watching was up; --full watches for longer")
        if run.get("restored"):
            notes.append(f"files outside of the project were changed and put back: {', '.join(run['restored'][:3])}")
        if run.get("made"):
            notes.append(f"files outside of the project were made: {', '.join(run['made'][:3])}")
        if run["command"]:
            notes.append("ran in a copy of the project, which is gone now; no file of yours was changed")
        return notes

    @property
    def sources(self) -> dict[str, str]:
        """Text of the project's source and configuration files that the run used, by path relative to the project."""
        return {event["path"]: event["text"] for event in self.of("source")}

    def probe(self, name: str) -> dict[str, Any]:
        """The result of an active probe.

        Raises:
            NotSeenError: it was not made; the text says why.
        """
        made = [event for event in self.of("probe") if event["name"] in (name, "all")]
        for event in reversed(made):
            if "result" in event:
                result: dict[str, Any] = event["result"]
                return result
        raise NotSeenError(made[-1]["skipped"] if made else "the run ended before its objects could be probed")

    # -- training --------------------------------------------------------------------------------------------------

    @cached_property
    def steps(self) -> list[Event]:
        """The steps of optimizers that were really carried out, but for those inside of another optimizer's."""
        return [e for e in self.of("step") if not e.get("fast") and not e.get("nested")]

    @property
    def training_failed(self) -> bool:
        """Whether nothing was trained."""
        return not self.of("step") and not self.of("backward")

    def need_training(self, steps: int = 1) -> None:
        """Raise if there were too few optimizer steps.

        Raises:
            NotSeenError: there were fewer than `steps`.
        """
        if len(self.steps) < steps:
            raise NotSeenError("too few optimizer steps were seen" if self.steps else "no optimizer step was seen")

    @cached_property
    def optimizers(self) -> dict[int, Event]:
        """The `optimizer` events by number."""
        return {e["id"]: e for e in self.of("optimizer")}

    @cached_property
    def steps_of(self) -> dict[int, list[Event]]:
        """The steps of each optimizer that stepped."""
        found: dict[int, list[Event]] = defaultdict(list)
        for step in self.steps:
            found[step["opt"]].append(step)
        return dict(found)

    @cached_property
    def main_optimizer(self) -> int | None:
        """The optimizer with the most steps."""
        return max(self.steps_of, key=lambda opt: len(self.steps_of[opt])) if self.steps_of else None

    @cached_property
    def iterations(self) -> list[Iteration]:
        """The passes over loaders, in the order in which they began."""
        ends = {e["iteration"]: e for e in self.of("iter_end")}
        found = []
        for begin in self.of("iter_begin"):
            end = ends.get(begin["iteration"])
            if end is None:
                continue
            counts = {key: end[key] for key in ("batches", "forwards", "backwards", "steps")}
            role = "train" if counts["steps"] or counts["backwards"] else "eval" if counts["forwards"] else "other"
            found.append(
                Iteration(
                    begin["iteration"], begin["loader"], role, counts, end["exhausted"], end["limit"], end["length"],
                    begin["loc"], begin["i"], end["i"],
                )
            )  # fmt: skip
        return found

    @cached_property
    def loaders(self) -> dict[int, Event]:
        """The `loader` events by number."""
        return {e["id"]: e for e in self.of("loader")}

    @cached_property
    def train_loaders(self) -> set[int]:
        """Numbers of the loaders that training iterates."""
        return {one.loader for one in self.iterations if one.role == "train"}

    @cached_property
    def epochs(self) -> list[Iteration]:
        """The passes over the loader that training iterates most."""
        train = [one for one in self.iterations if one.role == "train"]
        if not train:
            return []
        counts: dict[int, int] = defaultdict(int)
        for one in train:
            counts[one.loader] += 1
        main = max(counts, key=lambda loader: counts[loader])
        return [one for one in train if one.loader == main]

    @cached_property
    def trained_models(self) -> set[int]:
        """Numbers of the models that were trained."""
        return {p["model"] for p in self.of("pass") if p["trained"]}

    @cached_property
    def planned_epochs(self) -> int | None:
        """How many epochs the script's loop means to run, from its bounds."""
        loops = [e for e in self.of("loop") if e["step"] == 1 and e["stop"] - e["start"] >= 1]
        named = [e for e in loops if "epoch" in e["variable"].lower() or "epoch" in e["text"].lower()]
        around = [e for e in loops if e["around"] == "sched"]
        if named:  # a helper that trains one epoch may have a loop of its own inside
            return int(max(e["stop"] - e["start"] for e in named))
        chosen = around or (loops if len(loops) == 1 else [])
        return chosen[0]["stop"] - chosen[0]["start"] if chosen else None

    # -- evaluation ------------------------------------------------------------------------------------------------

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations, in order. Passes over a loader that is also trained on are none."""
        numbers = {one.number: one for one in self.iterations}
        found: list[Evaluation] = []
        last_trained = -1
        for event in self.events:
            kind = event["kind"]
            if kind == "backward":
                last_trained = event["i"]
            elif kind == "pass" and not event["trained"]:
                self._add_pass(event, numbers, found, last_trained)
            elif kind == "held_values" and found and found[-1].end > last_trained:
                found[-1].values.update({k: v for k, v in event["values"].items() if isinstance(v, int | float)})
                found[-1].values_loc = event.get("loc", "")
            elif kind == "said" and found and found[-1].end > last_trained:
                found[-1].said.append(event)
        for one, following in list(pairwise(found))[::-1]:
            if one.after == following.after:
                one.beside = following.beside = True
                if not one.values:
                    one.values, one.values_loc = dict(following.values), following.values_loc
                one.said = one.said or following.said
        return found

    def _add_pass(
        self, event: Event, numbers: dict[int, Iteration], found: list[Evaluation], last_trained: int
    ) -> None:
        if event.get("feeds"):
            return
        iteration = numbers.get(event["iteration"]) if event["iteration"] else None
        if iteration is not None and (iteration.role != "eval" or iteration.loader in self.train_loaders):
            return
        if iteration is None and event["iteration"]:
            return
        if iteration is None and event["grad"] and event["training"]:
            return
        key = iteration.loader if iteration else None
        start = iteration.begin if iteration else last_trained
        previous = found[-1] if found else None
        if previous and previous.loader == key and previous.end >= start and previous.begin > last_trained:
            previous.passes.append(event)
            previous.end = event["i"]
            return
        found.append(Evaluation(key, [event], event["i"], event["i"], after=last_trained))

    # -- schedules -------------------------------------------------------------------------------------------------

    def learning_rates(self, opt: int) -> list[float]:
        """The largest learning rate of an optimizer's groups at each of its steps, fast-forwarded ones included."""
        return [
            max(lr for lr in e["lrs"] if isinstance(lr, int | float))
            for e in self.of("step")
            if e["opt"] == opt and e["lrs"]
        ]

    @property
    def ran_to_the_end(self) -> bool:
        """Whether the script ended by itself, with success."""
        return self.run["code"] == 0 and not self.of("ended") and not self.run["timed_out"]

    # -- parameters ------------------------------------------------------------------------------------------------

    @cached_property
    def parameters(self) -> list[Event]:
        """Rows of the parameter tables of the models that were trained: name, shape, trainable, opts, graded, ..."""
        tables = [table for table in self.of("params") if table["model"] in self.trained_models]
        return [row for table in tables for row in table["rows"]]


def share(events: list[Event], key: str, value: Any) -> float:
    """The share of events whose `key` is `value`."""
    return sum(event.get(key) == value for event in events) / len(events) if events else 0.0


def _renamed(events: list[Event]) -> list[Event]:
    """The events, with files under the names that they were given in the end."""
    if not any(event["kind"] == "renamed" for event in events):
        return events
    names: dict[str, str] = {}
    result = []
    for event in reversed(events):
        if event["kind"] == "renamed":
            names[event["path"]] = event["to"]
        elif event["kind"] == "save" and event["path"] in names:
            event = {**event, "path": names[event["path"]]}
        result.append(event)
    return result[::-1]
