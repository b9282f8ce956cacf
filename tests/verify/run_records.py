"""A healthy run as a record, written by hand, to be changed in one place: what a rule has to notice, or to let pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verify.trace.record import FORMAT, Event, Record

EPOCHS, BATCHES, SIZE, EVAL_SIZES = 4, 6, 16, (16, 16, 8)
Where = Callable[[Event], bool]


def always(event: Event) -> bool:
    return True


class Run:
    """The events of a run of 4 epochs: 6 batches of 16 to train on, 16 + 16 + 8 samples to evaluate, every epoch.

    A small classifier, SGD with momentum, a cosine over the epochs, a checkpoint when an evaluation is the best so far.
    """

    def __init__(self, epochs: int = EPOCHS) -> None:
        self.epochs = epochs
        self.events: list[Event] = []
        self.step = self.passes = 0
        self._begin()
        for epoch in range(epochs):
            self._train(epoch)
            self._evaluate(epoch)
        self._end()

    # -- the events of a healthy run -----------------------------------------------------------------------------

    def add(self, kind: str, **fields: Any) -> Event:
        """A further event."""
        self.events.append({"kind": kind, **fields})
        return self.events[-1]

    def _begin(self) -> None:
        self.add(
            "run", format=FORMAT, command=["python", "train.py"], code=0, log="epoch 3\n", notes=[], timed_out=False
        )
        self.add("torch", version="2.9.0", cuda=False)
        self.add("seed", fn="torch.manual_seed", value=0, step=0, epoch=0, loc="train.py:3")
        group = {
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.0005,
            "tensors": 6,
            "numel": 210,
            "vectors": 4,
            "frozen": 0,
        }
        self.add("optimizer", id=0, cls="SGD", groups=[group], loc="train.py:20")
        common = {"batch_size": SIZE, "drop_last": False, "num_workers": 0, "limit": 6, "iterable": False}
        self.add("loader", id=0, loc="train.py:10", sampler="RandomSampler", shuffle=True, n=96, length=6, **common)
        self.add(
            "loader", id=1, loc="train.py:11", sampler="SequentialSampler", shuffle=False, n=40, length=3, **common
        )
        self.add("model", id=0, cls="Net", params=210, tensors=6, trainable=210, norms=1, dropouts=1, loc="train.py:33")
        loop = {"around": "iter", "start": 0, "stop": self.epochs, "step": 1, "variable": "epoch"}
        self.add("loop", **loop, text="range(epochs)", loc="train.py:29")
        numbers = {"T_max": self.epochs, "eta_min": 0.0, "base_lrs": [0.1]}
        self.add("scheduler", id=0, loc="train.py:21", cls="CosineAnnealingLR", numbers=numbers, opt=0)

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        return 0.1 * (1 - epoch / self.epochs)

    def _train(self, epoch: int) -> None:
        self.add("mode", model=0, training=True, loc="train.py:30")
        number = self._iterate(0, epoch, "train.py:31")
        for _ in range(BATCHES):
            value = 2.0 * 0.98**self.step
            self._forward(number, SIZE, value, trained=True)
            self.add(
                "backward", fn="cross_entropy", reduction="mean", value=value, ratio=1.0, chain=["loss"],
                stale={"0": "none"}, step=self.step, iteration=number, loc="train.py:35",
            )  # fmt: skip
            self.step += 1
            self.add(
                "step", n=self.step, opt=0, own=self.step, lrs=[self.rate(epoch)], grads="ok", cleared=True,
                zeroed_after_backward=False, zeroed_at="train.py:34", backwards=1, backwards_since_clear=1, batches=1,
                passes=1, closure=False, ratio=2e-3, scaled=False, nested=False, fast=False, iteration=number,
                epoch=epoch, loc="train.py:36",
            )  # fmt: skip
        counts = dict.fromkeys(("batches", "forwards", "backwards", "steps"), BATCHES)
        self.add("iter_end", loader=0, iteration=number, exhausted=True, limit=6, length=6, **counts)
        rates = [self.rate(epoch + 1)]
        self.add("sched", id=0, given=[], lrs=rates, step=self.step, epoch=epoch, iteration=None, loc="train.py:38")

    def _evaluate(self, epoch: int) -> None:
        self.add("mode", model=0, training=False, loc="train.py:39")
        number = self._iterate(1, epoch, "train.py:40")
        losses = [1.0 - 0.1 * epoch, 1.1 - 0.1 * epoch, 1.7 - 0.1 * epoch]
        right = [8 + epoch, 9 + epoch, 2 + epoch]
        for value, size, correct in zip(losses, EVAL_SIZES, right, strict=True):
            self._forward(number, size, value, trained=False)["correct"] = correct
        counts = {"batches": 3, "forwards": 3, "backwards": 0, "steps": 0}
        self.add("iter_end", loader=1, iteration=number, exhausted=True, limit=6, length=3, **counts)
        loss = sum(v * n for v, n in zip(losses, EVAL_SIZES, strict=True)) / 40
        accuracy = sum(right) / 40
        values = {"val_loss": loss, "val_acc": accuracy, "epoch": epoch, "best_acc": accuracy}
        self.add("held_values", step=self.step, values=values, loc="train.py:45")
        weights = {"kind": "weights", "tensors": 9, "first": "0.weight", "prefix": "", "live": 6, "made_at": self.step}
        content = {"kind": "dict", "type": "dict", "keys": {"model": weights}}
        self.add("save", path="best.pt", step=self.step, epoch=epoch, fast=False, content=content, loc="train.py:46")

    def _iterate(self, loader: int, epoch: int, place: str) -> int:
        self.passes += 1
        self.add("iter_begin", loader=loader, epoch=epoch, iteration=self.passes, loc=place)
        return self.passes

    def _forward(self, iteration: int, size: int, value: float, trained: bool) -> Event:
        scores = {"shape": [size, 10], "min": -3.0, "max": 4.0}
        target = {"shape": [size], "float": False, "min": 0, "max": 9}
        common = {"reduction": "mean", "grad": trained, "needs_grad": trained, "smoothing": 0.0, "n": size}
        place = "train.py:33" if trained else "train.py:41"
        self.add(
            "loss", fn="cross_entropy", value=value, input=scores, target=target, loc=place, step=self.step, **common
        )
        mode = 1.0 if trained else 0.0
        return self.add(
            "pass", model=0, training=trained, grad=trained, norms=mode, drops=mode, n=size, shape=[size, 10],
            learned=trained, loc=place, detached=False, wrapped=False, autocast="", trained=trained, step=self.step,
            iteration=iteration, losses=[value], reductions=["mean"], correct=size // 2,
        )  # fmt: skip

    def _end(self) -> None:
        row = {"trainable": True, "was_trainable": True, "opts": [0], "graded": True, "changed": True}
        shapes = {"stem.weight": [16, 8], "norm.weight": [16], "head.weight": [10, 16]}
        rows = [{**row, "name": name, "shape": shape, "moved_frozen": False} for name, shape in shapes.items()]
        self.add("params", model=0, rows=rows, buffers=[["norm.running_mean", True]], passes=36)
        self.add("held", opt=0, steps=24, tensors=3, frozen=0, foreign=[], n_foreign=0, unchanged=0, graded=3)
        self.add("saved_file", path="best.pt", safe=True, problem="", size=4000)
        self.add("flags", benchmark=True, deterministic=False, algorithms=False)
        self.add("finish", step=24, epochs=3)
        self.add("probe", name="loop", result={"saturated": {"fn": "cross_entropy", "finite": True}})
        self.add("repeat", equal=True, compared=20)

    # -- changes -------------------------------------------------------------------------------------------------

    def put(self, kind: str, where: Where = always, **fields: Any) -> Run:
        """Change fields of the events of a kind; a function gets the event."""
        for event in self.events:
            if event["kind"] == kind and where(event):
                event.update({k: v(event) if callable(v) else v for k, v in fields.items()})
        return self

    def drop(self, *kinds: str, where: Where = always) -> Run:
        """Leave events out."""
        self.events = [e for e in self.events if e["kind"] not in kinds or not where(e)]
        return self

    def after(self, kind: str, new: str, where: Where = always, **fields: Any) -> Run:
        """A new event behind each event of a kind."""
        return self._beside(kind, new, where, fields, behind=True)

    def before(self, kind: str, new: str, where: Where = always, **fields: Any) -> Run:
        """A new event in front of each event of a kind."""
        return self._beside(kind, new, where, fields, behind=False)

    def _beside(self, kind: str, new: str, where: Where, fields: dict[str, Any], behind: bool) -> Run:
        events: list[Event] = []
        for event in self.events:
            fits = event["kind"] == kind and where(event)
            made = {"kind": new, "step": event.get("step", 0), "loc": "train.py:50", **fields} if fits else {}
            made = {k: v(event) if callable(v) else v for k, v in made.items()}
            events += [event, made] if fits and behind else [made, event] if fits else [event]
        self.events = events
        return self

    def more(self, kind: str, **fields: Any) -> Run:
        """One more event at the end."""
        self.add(kind, **fields)
        return self

    def record(self) -> Record:
        """The record, its events numbered."""
        for number, event in enumerate(self.events):
            event["i"] = number
        return Record(self.events)
