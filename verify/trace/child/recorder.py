"""The state of a watched run: which models, optimizers and loaders there are, and what was done with them last."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from . import capture, reported, schedulers, weights
from .loaders import LARGEST_KEPT, TimeLapseIter, settings
from .passes import ModelInfo, Pass, autocast, copy_of, is_from, reaches, right_answers
from .pictures import contact_sheet
from .quiet import quiet
from .steps import OptimizerInfo
from .targets import TargetsProbe
from .tensors import digest, inputs_and_targets, possible_targets, tensors_of

# Batches of an epoch whose content is written down, for the order of the samples.
PRINTED_BATCHES = 4
MOST_PENDING = 8
# Passes of each epoch whose mode is written down in fast-forward.
SKIPPED_NOTED = 2
MOST_CAPTURES = 2
# Steps after which a model that is too heavy for the time there is gets fast-forwarded within its first epoch.
HEAVY_STEPS = 2
LARGEST_CACHED = 20_000_000
LEAST_SECONDS = 4.0  # for the script after torch is imported, which may itself have taken all the time that there was


class WatchEnded(SystemExit):
    """Ends the script when enough was seen."""


class Recorder:
    """Writes down what the hooks report.

    Args:
        session: settings, writer and places.
    """

    def __init__(self, session: Any) -> None:
        self.session, self.emit, self.here = session, session.emit, session.places.here
        options = session.settings
        self.cut_train, self.cut_eval = options["train_batches"], options["eval_batches"]
        self.max_epochs, self.stop_after = options["max_epochs"], options["stop_after"]
        self.stop_steps = options["stop_steps"]
        self.budget = options["compute_seconds"]
        self.may_restart = options["may_restart"]
        self.deadline = max(options["deadline"], time.time() + LEAST_SECONDS)
        self.started = False
        self.models: dict[int, ModelInfo] = {}
        self.others: dict[int, nn.Module] = {}
        self.optimizers: dict[int, OptimizerInfo] = {}
        self.schedulers: dict[int, Any] = {}
        self.loaders: dict[int, dict[str, Any]] = {}
        self.iterations = 0
        self.current: TimeLapseIter | None = None
        self.open: dict[int, TimeLapseIter] = {}
        self.pending: list[Pass] = []
        self.loss_terms = 0  # additions in the loss of a batch
        self.last_trained: Pass | None = None
        self.last_loss: dict[str, Any] = {}
        self.last_call: Any = None
        self.last_trained_call: Any = None
        self.inside = False
        self.is_probing = False
        self.is_seeding = False
        self.step = 0
        self.train_epochs = 0
        self.eval_phases = 0
        self.passes = 0
        self.snapshot: dict[int, tuple[Tensor, Tensor, bool]] | None = None
        self.frozen_norms: dict[int, list[Any]] = {}
        self.frozen_later: dict[int, tuple[Tensor, Tensor]] = {}
        self.step_depth = 0
        self.snapshot_size = 0
        self.graded: set[int] = set()
        self.looks: dict[int, int] = {}  # at the gradients of what could be trained and had none so far
        self.parts: dict[tuple[int, int], list[bool]] = {}
        self.twins: dict[int, tuple[nn.Module, list[Tensor], list[Tensor]]] = {}
        self.averaged: nn.Module | None = None
        self.held_averages: list[Any] = []
        self.average_looks: list[Any] = []
        self.captured = False
        self.captured_of: int | None = None
        self.captures = 0
        self.remembered: list[Any] = []  # what batches may be cut from, see held_data
        self.finished = False
        self.fast = False
        self.evaluated = False  # whether fast-forward has seen a whole evaluation, and computes no more
        self.worked = 0.0
        self.clock = time.monotonic()
        self.cache: dict[Any, Any] = {}
        self.backward_depth = 0
        self.in_scaler_step = False
        self.train_loader_ids: set[int] = set()
        self.state_dicts: dict[int, tuple[Any, int]] = {}
        self.best_seen: dict[int, int] = {}
        self.fresh_eval = False
        self.hints = 0
        self.pictures = 0
        self.last_batch: Any = None
        self.targets_probe = TargetsProbe()
        self.functional_calls = 0
        self.inner_losses: list[dict[str, Any]] = []
        self.horizon_places: set[str] = set()
        self.wrapped_models: dict[int, int] = {}
        self.constructed: dict[int, tuple[type, dict[str, Any]]] = {}

    # -- loaders -------------------------------------------------------------------------------------------------

    def new_loader(self, loader: Any) -> dict[str, Any]:
        """Give a loader its number."""
        entry = self.loaders.get(id(loader))
        if entry is None:
            entry = {"id": len(self.loaders), "loader": loader, "passes": 0, "batches": [], "kept": [], "told": False}
            entry["loc"] = self.here()
            self.loaders[id(loader)] = entry
        return entry

    def limit(self, loader: Any) -> int:
        """How many batches a pass over this loader has at most; the same at every call."""
        entry = self.new_loader(loader)
        if "limit" not in entry:
            shuffled = settings(loader)["sampler"] not in ("SequentialSampler", "_InfiniteConstantSampler")
            entry["limit"] = max(1, self.cut_train if shuffled or loader.drop_last else self.cut_eval)
        limit: int = entry["limit"]
        return limit

    def begin_iteration(self, iterator: TimeLapseIter) -> int:
        """A pass over a loader begins."""
        self.flush_passes()
        entry = self.new_loader(iterator.loader)
        if not entry["told"]:
            entry["told"] = True
            self.emit("loader", id=entry["id"], loc=entry["loc"], limit=iterator.limit, **settings(iterator.loader))
        previous = self.open.get(entry["id"])
        if previous is not None and previous is not iterator:
            previous.end(exhausted=False)
        self.open[entry["id"]] = iterator
        if id(iterator.loader) in self.train_loader_ids:
            self._next_train_epoch()
        self.iterations += 1
        self.emit("iter_begin", loader=entry["id"], epoch=entry["passes"], iteration=self.iterations, loc=self.here())
        entry["passes"] += 1
        entry.setdefault("first", self.iterations)
        entry["last"] = self.iterations
        iterator.counts = {"forwards": 0, "backwards": 0, "steps": 0, "batches": 0, "model_grad": 0}
        iterator.entry = entry
        self.look_at_frames("iter")
        return self.iterations

    @quiet
    def _next_train_epoch(self) -> None:
        """A further pass over a loader that training used begins."""
        self.train_epochs += 1
        self.look_at_report()
        if self.stop_after and self.train_epochs >= self.stop_after:
            self.end("stopped after the epochs that were asked for")
        if self.max_epochs and self.train_epochs >= self.max_epochs:
            self.end("the number of epochs that was asked for")
        weights.find_twins(self)
        weights.note_frozen(self)
        again = self.captured and self.captures < MOST_CAPTURES and self.captured_of != self._train_loader()
        if (not self.captured or again) and (self.eval_phases or self.train_epochs >= 2):
            self.capture()
        if not self.fast and self.train_epochs >= 3 and self.worked > self.budget:
            self._go_fast()

    def _go_fast(self) -> None:
        self.fast = True
        self.emit("fast", epoch=self.train_epochs, step=self.step, worked=round(self.worked, 1))

    @quiet
    def batch(self, iterator: TimeLapseIter, data: Any) -> None:
        """A loader delivers a batch."""
        self.check_time()
        self.flush_passes()
        self.current = iterator
        counts, entry = iterator.counts, iterator.entry
        number = counts["batches"]
        counts["batches"] += 1
        for info in self.optimizers.values():
            info.batches += 1
        if number < PRINTED_BATCHES and entry["passes"] <= 12:
            self._print_batch(entry, number, data)
        if number == 0 and entry["passes"] == 1 and self.step and self.pictures < 2:
            self.pictures += 1
            picture = contact_sheet(inputs_and_targets(data)[0])
            if picture:
                self.emit("batch_picture", role="eval", png_base64=picture)
        if number == iterator.limit - 1 and entry["passes"] <= 2:
            for name, depth in reported.kept_graphs(self.session.places.user_frames(), self.loss_terms).items():
                self.emit("graph_kept", name=name, depth=depth, loc=self.here())
        if (entry["passes"] == 1 and not iterator.length) or number < 64:
            self._keep(entry, number, data)
        self.last_batch = data
        if not self.fast:
            self.targets_probe.deliver(data)

    @quiet
    def _print_batch(self, entry: dict[str, Any], number: int, data: Any) -> None:
        inputs, targets = inputs_and_targets(data)
        if inputs is None:
            return
        if entry["passes"] == 1:
            entry["batches"].append((inputs, targets))
        classes = None
        if targets is not None and not targets.is_floating_point() and targets.dim() == 1:
            classes = int(targets.unique().numel())
        self.emit(
            "batch_print",
            loader=entry["id"],
            epoch=entry["passes"] - 1,
            batch=number,
            n=len(inputs),
            shape=list(inputs.shape),
            labels=digest(targets),
            inputs=digest(inputs),
            classes=classes,
        )

    def _keep(self, entry: dict[str, Any], number: int, data: Any) -> None:
        kept = entry["kept"]
        if number < len(kept):
            return
        size = sum(t.numel() * t.element_size() for t in tensors_of(data))
        if size * (number + 1) <= LARGEST_KEPT:
            kept.append(data)

    def replay(self, iterator: TimeLapseIter) -> Any:
        """In fast-forward, a batch of an earlier epoch instead of a new one."""
        kept, number = iterator.entry["kept"], iterator.counts["batches"]
        if not self.fast or not kept or iterator.entry["passes"] <= 2:
            return None
        if number >= min(len(kept), iterator.limit):
            iterator.end(exhausted=True)
            raise StopIteration
        self.check_time()
        self.flush_passes()
        self.current = iterator
        iterator.counts["batches"] += 1
        return kept[number]

    @quiet
    def end_iteration(self, iterator: TimeLapseIter, exhausted: bool) -> None:
        """A pass over a loader is over."""
        self.flush_passes()
        counts = iterator.counts
        if counts["steps"] or counts["backwards"]:
            if id(iterator.loader) not in self.train_loader_ids:
                self.train_loader_ids.add(id(iterator.loader))
            self.fresh_eval = False
        elif counts["forwards"]:
            self.eval_phases += 1
            self.fresh_eval = self.session.talking = True
        self.emit(
            "iter_end",
            loader=iterator.entry["id"],
            iteration=iterator.iteration,
            exhausted=exhausted,
            limit=iterator.limit,
            length=iterator.length,
            **counts,
        )
        if self.current is iterator:
            self.current = None

    # -- forward, loss -------------------------------------------------------------------------------------------

    def info(self, module: nn.Module) -> ModelInfo | None:
        """The number of a model; None for modules without parameters, such as losses and transforms."""
        known = self.models.get(id(module))
        if known is not None and known.module is module:
            return known
        if self.others.get(id(module)) is module:
            return None
        if next(module.parameters(), None) is None:
            if len(self.others) < 1000:
                self.others[id(module)] = module
            return None
        known = self.models[id(module)] = ModelInfo(len(self.models), module)
        if self.snapshot is not None and len(self.models) < 20:
            weights.add_to_snapshot(self, known)
        if known.number < 30:
            self.emit(
                "model",
                id=known.number,
                cls=type(module).__name__,
                params=sum(p.numel() for _, p in known.named),
                tensors=len(known.named),
                trainable=sum(p.numel() for _, p in known.named if p.requires_grad),
                norms=len(known.norms),
                dropouts=len(known.dropouts),
                loc=self.here(),
            )
        return known

    def forward(self, info: ModelInfo, call: Any, args: tuple, kwargs: dict) -> Any:
        """Run a model's forward pass and write it down."""
        module, grad = info.module, torch.is_grad_enabled()
        if self.skips(module.training and grad):
            output = self._cached(info, args, kwargs, grad)
            if output is not None:
                self._note_skipped(info, grad)
                return output
        version = info.statistics_version()
        if not module.training or not grad:
            self.flush_passes(of=info)
        self.check_time()
        start = time.monotonic()
        self.inside, self.inner_losses = True, []
        try:
            output = call(module, *args, **kwargs)
        finally:
            self.inside = False
        self.worked += time.monotonic() - start
        self._note_forward(info, args, kwargs, output, version)
        return output

    @quiet
    def _note_skipped(self, info: ModelInfo, grad: bool) -> None:
        """A pass that is left out still shows the mode that the model is in."""
        if not grad or self.current is None or self.current.counts["forwards"] > SKIPPED_NOTED:
            return
        norms, drops = info.modes()
        self.emit(
            "skipped_pass",
            model=info.number,
            training=info.module.training,
            norms=norms,
            drops=drops,
            loader=self.current.entry["id"],
            loc=self.here(),
        )

    @quiet
    def _note_forward(self, info: ModelInfo, args: tuple, kwargs: dict, output: Any, version: int) -> None:
        """Remember a forward pass until it is known whether it is trained on."""
        module, grad = info.module, torch.is_grad_enabled()
        norms, drops = info.modes()
        tensors = list(tensors_of(output))
        main = tensors[0] if tensors else None
        inputs = next(tensors_of((args, kwargs)), None)
        fields = {
            "model": info.number,
            "training": module.training,
            "grad": grad,
            "norms": norms,
            "drops": drops,
            "n": len(main) if main is not None and main.dim() else 0,
            "shape": list(main.shape) if main is not None else None,
            "learned": info.statistics_version() != version,
            "loc": self.here(),
            "detached": bool(
                grad and main is not None and not main.requires_grad and any(p.requires_grad for _, p in info.named)
            ),
            "wrapped": id(module) in self.wrapped_models,
            "autocast": autocast(),
        }
        if (
            not grad
            and module.training
            and (norms > 0 or drops > 0)
            and (told := info.weights_at(self.step)) is not None
        ):
            fields["weights"] = told
        info.passes += 1
        self.passes += 1
        if self.current is not None:
            self.current.counts["forwards"] += 1
        if len(self.pending) >= MOST_PENDING:
            self.flush_passes()
        if grad:
            self._note_feeding((args, kwargs))
        one = Pass(info, fields, (args, kwargs), main, self._targets(main))
        one.add_losses(self.inner_losses)
        self.pending.append(one)
        if inputs is not None and main is not None and main.numel() <= LARGEST_CACHED:
            self.cache[self._cache_key(info, inputs, grad)] = output
        self._check_dropouts(info)
        if grad and not self.targets_probe.is_done:
            self.targets_probe.watch((args, kwargs), main)

    def _targets(self, output: Tensor | None) -> Tensor | None:
        """What the batch says that the output should be, if only one of its tensors can be meant."""
        if self.current is None or output is None or not output.dim():
            return None
        if output.dim() == 2 and output.shape[1] > 1:
            possible = possible_targets(self.last_batch, len(output), output.shape[1])
            return possible[0] if len(possible) == 1 else None
        _, targets = inputs_and_targets(self.last_batch)
        return targets if targets is not None and len(targets) == len(output) else None

    @staticmethod
    def _cache_key(info: ModelInfo, inputs: Tensor, grad: bool) -> Any:
        return info.number, info.module.training, grad, tuple(inputs.shape)

    def _cached(self, info: ModelInfo, args: tuple, kwargs: dict, grad: bool) -> Any:
        inputs = next(tensors_of((args, kwargs)), None)
        if inputs is None:
            return None
        output = self.cache.get(self._cache_key(info, inputs, grad))
        if output is None:
            return None
        if self.current is not None:
            self.current.counts["forwards"] += 1
        return copy_of(output, grad)

    def _check_dropouts(self, info: ModelInfo) -> None:
        if info.rates_told or not info.module.training:
            return
        rates = [m.p for m in info.dropouts]
        if rates != info.rates:
            info.rates_told = True
            self.emit("dropout_changed", model=info.number, before=info.rates[:8], after=rates[:8], loc=self.here())

    @quiet
    def note_loss(self, fields: dict[str, Any], output: Tensor, inputs: Tensor) -> None:
        """A loss function was called."""
        self.last_loss = {**fields, "node": output.grad_fn}
        self.targets_probe.note_loss(fields["fn"], output, fields.get("target_tensor"))
        if self.inside:  # a model that computes its loss itself: the pass is known when it is over
            self.inner_losses.append(fields)
            self.emit("loss", step=self.step, **{k: v for k, v in fields.items() if k != "target_tensor"})
            return
        match = origin = next((p for p in reversed(self.pending) if is_from(p, inputs)), None)
        if match is None and self.pending and len(self.pending[-1].fields.get("shape") or []):
            match = self.pending[-1]
        if match is not None:
            match.losses.append(fields)
            target = fields.pop("target_tensor", None)
            if target is not None and (match.targets is None or (origin is not None and len(match.losses) == 1)):
                match.targets = target
        fields.pop("target_tensor", None)
        self.emit("loss", step=self.step, **fields)

    @quiet
    def _note_feeding(self, model_input: Any) -> None:
        """Mark the passes without a gradient whose output another model is now trained on: they evaluate nothing."""
        silent = [p for p in self.pending if not p.fields["grad"] and p.output is not None]
        if silent:
            given = {t.untyped_storage().data_ptr() for t in tensors_of(model_input)}
            for one in silent:
                if one.output.untyped_storage().data_ptr() in given:
                    one.fields["feeds"] = True

    @quiet
    def flush_passes(
        self, of: ModelInfo | None = None, only_eval: bool = False, trained: bool = False, root: Any = None
    ) -> None:
        """Write down the forward passes of which it is known now whether they were trained on.

        Args:
            of: those of this model alone.
            only_eval: those that are an evaluation alone: without gradients, or in eval mode and not part of `root`.
            trained: the others are what the backward pass is about.
            root: what `backward` is called on.
        """
        if not self.pending:
            return
        keep = []
        for one in self.pending:
            other = of is not None and one.info is not of
            if other or (only_eval and one.fields["grad"] and (one.fields["training"] or reaches(root, one.output))):
                keep.append(one)
                continue
            self._write_pass(one, trained and one.fields["grad"])
        self.pending = keep

    def _write_pass(self, one: Pass, trained: bool) -> None:
        fields = one.fields
        if trained:
            self.last_trained = one
            if self.current is not None:
                self.current.counts["model_grad"] += 1
        right = right_answers(one)
        losses = [loss["value"] for loss in one.losses if loss.get("value") is not None]
        if self.current is None and trained and self.step < 400:
            right["labels"], right["inputs"] = digest(one.targets), digest(next(tensors_of(one.model_input), None))
        for info in self.optimizers.values():
            info.passes += trained
        self.emit(
            "pass",
            **fields,
            trained=trained,
            step=self.step,
            iteration=self.current.iteration if self.current is not None else None,
            losses=losses[:4],
            reductions=[loss.get("reduction") for loss in one.losses][:4],
            **right,
        )
        if not trained and self.current is None and not fields["training"]:
            self.fresh_eval = self.session.talking = True
            self.eval_phases = max(self.eval_phases, 1)

    # -- the end -------------------------------------------------------------------------------------------------

    def check_time(self) -> None:
        """End the script when its time is up; begin to fast-forward when there is no end of an epoch in sight."""
        now = time.time()
        if not self.started:  # reading the data may have taken most of the time
            self.started = True
            options = self.session.settings
            self.deadline = max(self.deadline, min(now + options["soft_seconds"], options["latest"]))
        if now > self.deadline and not self.finished and not self.is_probing:
            self.end("time")
        slow = self.step >= HEAVY_STEPS and self.worked > self.budget / 8 * self.step
        if slow and self.may_restart and not self.train_epochs and not self.eval_phases and not self.is_probing:
            self.emit("heavy", step=self.step, worked=round(self.worked, 1))
            self.end("the model is too heavy for so many batches")
        heavy = slow and self.worked > self.budget
        endless = self.worked > 2 * self.budget and self.step >= 12
        if not self.fast and (heavy or endless) and not self.is_probing:
            if not self.captured and self.step >= 12:
                self.capture()
            self._go_fast()

    def skips(self, trained: bool) -> bool:
        """Whether a pass is left out in fast-forward: all but those of one whole evaluation."""
        return self.fast and (trained or self.evaluated)

    def end(self, why: str) -> None:
        """End the script."""
        self.emit("ended", why=why, step=self.step)
        self.finish()
        raise WatchEnded(0)

    @quiet
    def capture(self) -> None:
        """Fork, and try the live objects in the copy of this process."""
        self.captured, self.captured_of = True, self._train_loader()
        self.captures += 1
        if self.session.settings["probes"]:
            capture.fork_and_probe(self)

    def _train_loader(self) -> int | None:
        """The loader that was trained on last."""
        trained = [e["id"] for e in self.loaders.values() if id(e["loader"]) in self.train_loader_ids]
        return trained[-1] if trained else None

    @quiet
    def finish(self) -> None:
        """Write down what only the end can show."""
        if self.finished or os.getpid() != self.session.writer.pid:
            return
        self.finished = True
        for iterator in list(self.open.values()):
            iterator.end(exhausted=False)
        self.flush_passes()
        self.look_at_report()
        if self.step and not self.captured:
            self.capture()
        weights.find_twins(self, last=True)
        weights.write_tables(self)
        capture.look_at_files(self)
        schedulers.write_schedulers(self)
        self.emit(
            "flags",
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            algorithms=torch.are_deterministic_algorithms_enabled(),
        )
        self.session.write_sources()
        self.emit("finish", step=self.step, worked=round(self.worked, 2), fast=self.fast, epochs=self.train_epochs)
        self.session.writer.flush()

    def release(self) -> None:
        """Let go of the user's objects at the very end: what they hold is closed, and files are flushed, only then."""
        self.is_probing = True
        for name, value in list(vars(self).items()):
            if isinstance(value, (dict, list, set)):
                setattr(self, name, type(value)())
            elif name.startswith("last_") or name in ("current", "snapshot", "averaged"):
                setattr(self, name, None)

    # -- what the script says --------------------------------------------------------------------------------------

    @quiet
    def look_at_report(self) -> None:
        """Collect the numbers that the script holds after an evaluation."""
        self.flush_passes(only_eval=True)
        if self.fresh_eval and not self.skips(False):
            frames = self.session.places.user_frames()
            values = reported.numbers([frame.f_locals for frame in frames] or [vars(sys.modules["__main__"])])
            self.emit("held_values", step=self.step, values=values, loc=self.here())
            self.fresh_eval = False
            if self.hints < 20:
                self.hints += 1
                for name, depth in reported.kept_graphs(frames, self.loss_terms).items():
                    self.emit("graph_kept", name=name, depth=depth, loc=self.here())
                for name, step in reported.old_snapshots(self, frames).items():
                    self.hints += 5
                    self.emit("old_snapshot", name=name, made_at=step, step=self.step, loc=self.here())

    @quiet
    def look_at_frames(self, event: str) -> None:
        """Find the loop over epochs around this event, and how far it means to go."""
        if len(self.horizon_places) < 12:
            reported.epoch_loops(self, self.session.places.user_frames(), event)
