"""The state of a watched run: which models, optimizers and loaders there are, and what was done with them last."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import capture, rates, reported, saving
from .events import finite
from .loaders import LARGEST_KEPT, TimeLapseIter, settings
from .pictures import contact_sheet
from .quiet import quiet
from .targets import TargetsProbe
from .tensors import digest, inputs_and_targets, tensors_of

# Batches of an epoch whose content is written down, for the order of the samples.
PRINTED_BATCHES = 4
LARGEST_SNAPSHOT = 2 * 2**30
PROBE_NUMEL = 100_000
MOST_OPERATIONS = 200  # between a model's output and the loss
MOST_PENDING = 8
MOST_CAPTURES = 2
# Steps after which a model that is too heavy for the time there is gets fast-forwarded within its first epoch.
HEAVY_STEPS = 2
# Steps at which gradients and parameters are looked at in full; between them only a few small tensors are.
FULL_LOOKS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
LARGEST_CACHED = 20_000_000
LEAST_SECONDS = 4.0  # for the script after torch is imported, which may itself have taken all the time that there was
LONGEST_CURVE = 2_000_000
NORMS = (nn.modules.batchnorm._NormBase,)
DROPOUTS = (nn.modules.dropout._DropoutNd,)


class WatchEnded(SystemExit):
    """Ends the script when enough was seen."""


class ModelInfo:
    """A module that the script calls from outside of any other module."""

    def __init__(self, number: int, module: nn.Module) -> None:
        self.number, self.module = number, module
        named = list(module.named_parameters())
        self.ids = {id(p) for _, p in named}
        self.named = named
        modules = list(module.modules())
        self.norms = [m for m in modules if isinstance(m, NORMS) and getattr(m, "running_mean", None) is not None]
        self.dropouts = [m for m in modules if isinstance(m, DROPOUTS)]
        self.rates = [m.p for m in self.dropouts]
        self.rates_told = False
        self.passes = 0

    def modes(self) -> tuple[float, float]:
        """Shares of norms and of dropouts that are in train mode; -1 where there are none."""
        norms = sum(m.training for m in self.norms) / len(self.norms) if self.norms else -1
        drops = sum(m.training for m in self.dropouts) / len(self.dropouts) if self.dropouts else -1
        return norms, drops

    def statistics_version(self) -> int:
        """Grows when running statistics change."""
        return sum(m.running_mean._version for m in self.norms[:4])


class Pass:
    """One forward pass of a model, until it is known whether a backward pass follows."""

    __slots__ = ("fields", "info", "losses", "model_input", "output", "targets")

    def __init__(self, info: ModelInfo, fields: dict[str, Any], model_input: Any, output: Any, targets: Any) -> None:
        self.info, self.fields = info, fields
        self.model_input, self.output, self.targets = model_input, output, targets
        self.losses: list[dict[str, Any]] = []


class OptimizerInfo:
    """An optimizer and what happened since its last step."""

    def __init__(self, number: int, optimizer: Any) -> None:
        self.number, self.optimizer = number, optimizer
        self.steps = 0
        self.cleared = True
        self.zeroed_at = ""
        self.zeroed_after_backward = False
        self.backwards = 0
        self.backwards_since_clear = 0
        self.batches = 0
        self.passes = 0
        self.before: list[Tensor] = []
        self.grads = "none"
        self.pending: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        """Choose the parameters that are looked at in every step: the first, the middle and the last small ones."""
        tensors = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        small = [p for p in tensors if p.numel() <= PROBE_NUMEL] or tensors
        self.probes = list({id(p): p for p in (small[0], small[len(small) // 2], small[-1])}.values()) if small else []
        self.count = sum(len(group["params"]) for group in self.optimizer.param_groups)

    def parameters(self) -> list[Tensor]:
        """All tensors that the optimizer holds."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def gradient_state(parameters: list[Tensor]) -> str:
    """`none`, `zero`, `nonfinite` or `ok`, taken together."""
    found = "none"
    for p in parameters:
        if p.grad is None:
            continue
        grad = p.grad
        if grad.is_sparse:
            return "ok"
        largest = grad.detach().abs().max().item() if grad.numel() else 0.0
        if largest != largest or largest == float("inf"):
            return "nonfinite"
        if largest > 0:
            found = "ok"
        elif found == "none":
            found = "zero"
    return found


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
        self.deadline = max(options["deadline"], time.time() + LEAST_SECONDS)
        self.models: dict[int, ModelInfo] = {}
        self.others: dict[int, nn.Module] = {}
        self.optimizers: dict[int, OptimizerInfo] = {}
        self.schedulers: dict[int, Any] = {}
        self.loaders: dict[int, dict[str, Any]] = {}
        self.iterations = 0
        self.current: TimeLapseIter | None = None
        self.open: dict[int, TimeLapseIter] = {}
        self.pending: list[Pass] = []
        self.last_trained: Pass | None = None
        self.last_loss: dict[str, Any] = {}
        self.last_call: Any = None
        self.inside = False
        self.is_probing = False
        self.is_seeding = False
        self.step = 0
        self.train_epochs = 0
        self.eval_phases = 0
        self.passes = 0
        self.snapshot: dict[int, tuple[Tensor, Tensor, bool]] | None = None
        self.frozen_later: dict[int, tuple[Tensor, Tensor]] = {}
        self.step_depth = 0
        self.snapshot_size = 0
        self.graded: set[int] = set()
        self.twins: dict[int, tuple[nn.Module, list[Tensor], list[Tensor]]] = {}
        self.captured = False
        self.captured_of: int | None = None
        self.captures = 0
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
        self._find_twins()
        self._note_frozen()
        again = self.captured and self.captures < MOST_CAPTURES and self.captured_of != self._train_loader()
        if (not self.captured or again) and (self.eval_phases or self.train_epochs >= 2):
            self.capture()
        if not self.fast and self.train_epochs >= 3 and self.worked > self.budget:
            self._go_fast()

    def _go_fast(self) -> None:
        self.fast = True
        self.emit("fast", epoch=self.train_epochs, step=self.step, worked=round(self.worked, 1))

    def _note_frozen(self) -> None:
        """Parameters that were trained and are frozen now must not move any more."""
        for p, _, was_trainable in (self.snapshot or {}).values():
            if was_trainable and not p.requires_grad and id(p) not in self.frozen_later:
                self.frozen_later[id(p)] = (p, p.detach().clone())

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
            for name, depth in reported.kept_graphs(self.session.places.user_frames()).items():
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

    # -- forward, loss, backward ---------------------------------------------------------------------------------

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
            self._add_to_snapshot(known)
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
                return output
        version = info.statistics_version()
        if not module.training or not grad:
            self.flush_passes(of=info)
        self.check_time()
        start = time.monotonic()
        self.inside = True
        try:
            output = call(module, *args, **kwargs)
        finally:
            self.inside = False
        self.worked += time.monotonic() - start
        self._note_forward(info, args, kwargs, output, version)
        return output

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
            "autocast": _autocast(),
        }
        info.passes += 1
        self.passes += 1
        if self.current is not None:
            self.current.counts["forwards"] += 1
        if len(self.pending) >= MOST_PENDING:
            self.flush_passes()
        targets = self._targets(fields["n"])
        self.pending.append(Pass(info, fields, (args, kwargs), main, targets))
        if inputs is not None and main is not None and main.numel() <= LARGEST_CACHED:
            self.cache[self._cache_key(info, inputs, grad)] = output
        self._check_dropouts(info)
        if grad and not self.targets_probe.is_done:
            self.targets_probe.watch((args, kwargs), main)

    def _targets(self, count: int) -> Tensor | None:
        if self.current is None:
            return None
        _, targets = inputs_and_targets(self.last_batch)
        return targets if targets is not None and len(targets) == count else None

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
        return _copy_of(output, grad)

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
        match = next((p for p in reversed(self.pending) if _is_from(p, inputs)), None)
        if match is None and self.pending and len(self.pending[-1].fields.get("shape") or []):
            match = self.pending[-1]
        if match is not None:
            match.losses.append(fields)
            target = fields.pop("target_tensor", None)
            if target is not None and match.targets is None:
                match.targets = target
        fields.pop("target_tensor", None)
        self.emit("loss", step=self.step, **fields)

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
            if other or (only_eval and one.fields["grad"] and (one.fields["training"] or _reaches(root, one.output))):
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
        right = _right_answers(one)
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

    def backward(self, root: Any, call: Any, args: tuple, kwargs: dict) -> Any:
        """Run a backward pass and write it down."""
        if self.fast:
            self.evaluated = self.eval_phases > 0
            self.fresh_eval = self.session.talking = False
            return None
        self.check_time()
        seen = self._before_backward(root)
        start = time.monotonic()
        self.backward_depth += 1
        try:
            result = call(*args, **kwargs)
        finally:
            self.backward_depth -= 1
        self.worked += time.monotonic() - start
        self._after_backward(seen or {})
        return result

    @quiet
    def _before_backward(self, root: Any) -> dict[str, Any]:
        tensor = root if isinstance(root, Tensor) else next(iter(root), None)
        self.flush_passes(only_eval=True, root=tensor)
        if self.fresh_eval:
            self.look_at_report()
        value = tensor.detach().item() if isinstance(tensor, Tensor) and tensor.numel() == 1 else None
        chain = self._chain(tensor)
        stale = {}
        for info in self.optimizers.values():
            state = gradient_state(info.probes)
            if state in ("none", "zero"):
                info.cleared = True
                info.backwards_since_clear = 0
            stale[info.number] = state
        self.flush_passes(trained=True)
        if self.snapshot is None:
            self._take_snapshot()
        used, self.last_loss = self.last_loss, {}
        last = used.get("value")
        ratio = value / last if isinstance(last, (int, float)) and value is not None and last else None
        return {
            "fn": used.get("fn"),
            "reduction": used.get("reduction"),
            "value": None if value is None else finite(value),
            "ratio": None if ratio is None else finite(round(ratio, 6)),
            "chain": chain,
            "stale": stale,
        }

    @quiet
    def _after_backward(self, seen: dict[str, Any]) -> None:
        for info in self.optimizers.values():
            info.backwards += 1
            info.backwards_since_clear += 1
            info.zeroed_after_backward = False
        if self.current is not None:
            self.current.counts["backwards"] += 1
            self.train_loader_ids.add(id(self.current.loader))
        self.fresh_eval = self.session.talking = False
        self.emit(
            "backward",
            **seen,
            step=self.step,
            iteration=self.current.iteration if self.current is not None else None,
            loc=self.here(),
        )
        self._look_at_targets()

    @quiet
    def _look_at_targets(self) -> None:
        found = self.targets_probe.result()
        if found is not None and self.last_trained is not None:
            self.emit("targets", step=self.step, loc=self.last_trained.fields["loc"], **found)

    def _chain(self, tensor: Any) -> list[str]:
        """Names of the operations between the loss function and what `backward` is called on."""
        node, target, names = getattr(tensor, "grad_fn", None), self.last_loss.get("node"), list[str]()
        while node is not None and node is not target and len(names) < 8:
            names.append(type(node).__name__)
            following = [n for n, _ in node.next_functions if n is not None]
            node = following[0] if following else None
        if target is not None and node is target:
            names.append("loss")
        return names

    # -- optimizers ----------------------------------------------------------------------------------------------

    def optimizer(self, optimizer: Any) -> OptimizerInfo:
        """The number of an optimizer, and what is known of it."""
        info = self.optimizers.get(id(optimizer))
        if info is None:
            info = self.optimizers[id(optimizer)] = OptimizerInfo(len(self.optimizers), optimizer)
            groups = []
            for group in optimizer.param_groups:
                plain = {k: _plain(v) for k, v in group.items() if k != "params"}
                tensors = group["params"]
                groups.append(
                    {
                        **plain,
                        "tensors": len(tensors),
                        "numel": sum(p.numel() for p in tensors),
                        "vectors": sum(p.dim() <= 1 for p in tensors),
                        "frozen": sum(not p.requires_grad for p in tensors),
                    }
                )
            self.emit("optimizer", id=info.number, cls=type(optimizer).__name__, groups=groups, loc=self.here())
        return info

    @quiet
    def zero(self, info: OptimizerInfo) -> None:
        """Gradients of an optimizer are set to zero."""
        info.zeroed_after_backward = info.backwards > 0
        info.zeroed_at = self.here()
        info.cleared = True
        info.backwards_since_clear = 0

    @quiet
    def before_step(self, optimizer: Any) -> None:
        """An optimizer is about to step."""
        info = self.optimizer(optimizer)
        self.flush_passes()
        if self.eval_phases and not self.captured and not self.train_loader_ids and self.current is None:
            self.capture()  # batches are cut by hand: the functions that hold the tensors still run now
        if len(info.parameters()) != info.count:
            info.refresh()
        if self.snapshot is None:
            self._take_snapshot()
        state = gradient_state(info.probes)
        full = info.steps + 1 in FULL_LOOKS
        if state in ("none", "zero", "nonfinite") or full:
            state = gradient_state(info.parameters())
        info.grads = state
        if full:
            self._note_gradients(info)
        info.before = [p.detach().clone() for p in info.probes] if full else []
        counts = self.current.counts if self.current is not None else None
        if counts is not None and counts["steps"] == 0 and self.train_epochs <= 16:
            self._note_weights(info)
        if info.steps == 0:
            capture.look_at_first_step(self, info)
            saving.look_at_loaded(self)

    @quiet
    def after_step(self, optimizer: Any, closure: bool) -> None:
        """An optimizer has stepped."""
        info = self.optimizer(optimizer)
        info.steps += 1
        self.step += 1
        if self.current is not None:
            self.current.counts["steps"] += 1
            self.train_loader_ids.add(id(self.current.loader))
        if closure:
            info.grads = gradient_state(info.probes)
        ratio = None
        if info.before:
            pairs = [(a, b.detach()) for a, b in zip(info.before, info.probes) if b.dim() >= 2 and bool(a.norm() > 0)]
            ratio = max((((b - a).norm() / a.norm()).item() for a, b in pairs), default=None)
            ratio = None if ratio is None else finite(ratio)
        self.look_at_rates(info)
        self.emit(
            "step",
            n=self.step,
            opt=info.number,
            own=info.steps,
            lrs=[_plain(group.get("lr")) for group in optimizer.param_groups][:16],
            grads=info.grads,
            cleared=info.cleared,
            zeroed_after_backward=info.zeroed_after_backward,
            zeroed_at=info.zeroed_at,
            backwards=info.backwards,
            backwards_since_clear=info.backwards_since_clear,
            batches=info.batches,
            passes=info.passes,
            closure=closure,
            ratio=ratio,
            scaled=self.in_scaler_step,
            nested=self.step_depth > 0,
            fast=self.fast,
            iteration=self.current.iteration if self.current is not None else None,
            epoch=self.current.entry["passes"] - 1 if self.current is not None else None,
            loc=self.here(),
            **info.pending,
        )
        info.pending = {}
        info.cleared = closure
        info.backwards = 0
        info.backwards_since_clear = 0
        info.batches = info.passes = 0
        info.zeroed_after_backward = False
        if self.stop_steps and self.step >= self.stop_steps:
            self.end("stopped after the steps that were asked for")
        self.check_time()

    @quiet
    def look_at_rates(self, info: OptimizerInfo) -> None:
        """What the script calls a learning rate, how many steps it plans, which of its objects may set the rate."""
        called = rates.named(self, info.steps)
        if called:
            info.pending["named_rates"] = called
        if info.steps == 1:
            rates.note_plan(self, info.number)
        elif info.steps == 2:
            rates.note_holders(self, info.number, info.optimizer)

    def _note_weights(self, info: OptimizerInfo) -> None:
        """A checksum of what is trained at the first step of an epoch, to tell where a resumed run goes on."""
        total = sum(p.detach().double().sum().item() for p in info.parameters())
        self.emit("weights", opt=info.number, step=self.step, sum=finite(total), state=len(info.optimizer.state))

    def _note_gradients(self, info: OptimizerInfo) -> None:
        norms: dict[str, Any] = {}
        for model in list(self.models.values())[:4]:
            for name, p in model.named:
                if p.grad is None or p.grad.is_sparse:
                    continue
                norm = p.grad.detach().norm().item()
                if norm != 0:
                    self.graded.add(id(p))
                if len(norms) < 400:
                    norms[name] = finite(round(norm, 8)) if norm == norm else "nan"
        for p in info.parameters():
            if id(p) not in self.graded and gradient_state([p]) in ("ok", "nonfinite"):
                self.graded.add(id(p))
        self.emit("grad_norms", step=self.step + 1, opt=info.number, norms=norms)

    def _take_snapshot(self) -> None:
        """Remember all parameters before the first step, to see later which of them never changed."""
        tensors = {id(p): p for m in self.models.values() for _, p in m.named}
        for info in self.optimizers.values():
            tensors.update({id(p): p for p in info.parameters()})
        size = sum(p.numel() * p.element_size() for p in tensors.values())
        self.snapshot = {}
        self.snapshot_size = size
        if size <= LARGEST_SNAPSHOT:
            self.snapshot = {key: (p, p.detach().clone(), p.requires_grad) for key, p in tensors.items()}
            for model in self.models.values():
                self._add_to_snapshot(model)

    def _add_to_snapshot(self, info: ModelInfo) -> None:
        """Remember what a model consists of, unless it is known already or too large."""
        tensors = [*info.module.parameters(), *info.module.buffers()]
        fresh = [t for t in tensors if self.snapshot is not None and id(t) not in self.snapshot]
        self.snapshot_size += sum(t.numel() * t.element_size() for t in fresh)
        if self.snapshot is not None and self.snapshot_size <= LARGEST_SNAPSHOT:
            self.snapshot.update({id(t): (t, t.detach().clone(), t.requires_grad) for t in fresh})

    # -- the end -------------------------------------------------------------------------------------------------

    def check_time(self) -> None:
        """End the script when its time is up; begin to fast-forward when there is no end of an epoch in sight."""
        now = time.time()
        if now > self.deadline and not self.finished and not self.is_probing:
            self.end("time")
        heavy = self.worked > self.budget and self.step >= HEAVY_STEPS and self.worked > self.budget / 8 * self.step
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
        self._find_twins(last=True)
        self._write_tables()
        capture.look_at_files(self)
        self._write_schedulers()
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
            elif name.startswith("last_") or name in ("current", "snapshot"):
                setattr(self, name, None)

    def _write_tables(self) -> None:
        held: dict[int, list[int]] = {}
        for info in self.optimizers.values():
            for p in info.parameters():
                held.setdefault(id(p), []).append(info.number)
            if info.steps:
                self._note_gradients(info)
        ranked = sorted(self.models.values(), key=lambda m: -m.passes)[:12]
        for model in ranked:
            rows = []
            for name, p in model.module.named_parameters():
                start = (self.snapshot or {}).get(id(p))
                changed = (
                    None if start is None or (self.fast and not self.step) else not torch.equal(start[1], p.detach())
                )
                was_trainable = p.requires_grad if start is None else start[2]
                later = self.frozen_later.get(id(p))
                moved = later is not None and not p.requires_grad and not torch.equal(later[1], p.detach())
                rows.append(
                    {
                        "name": name,
                        "shape": list(p.shape),
                        "trainable": p.requires_grad,
                        "was_trainable": was_trainable,
                        "opts": held.get(id(p), []),
                        "graded": id(p) in self.graded,
                        "changed": changed,
                        "moved_frozen": moved or (changed and not p.requires_grad and not was_trainable),
                    }
                )
            buffers = []
            for name, b in model.module.named_buffers():
                start = (self.snapshot or {}).get(id(b))
                if start is not None and b.is_floating_point():
                    buffers.append([name, not torch.equal(start[1], b.detach())])
            self.emit("params", model=model.number, rows=rows[:3000], buffers=buffers[:2000], passes=model.passes)
        known = {id(p) for model in self.models.values() for p in model.module.parameters()}
        for info in self.optimizers.values():
            tensors = info.parameters()
            foreign = [list(p.shape) for p in tensors if id(p) not in known and id(p) not in self.graded]
            frozen = sum(not p.requires_grad for p in tensors)
            still = 0
            if self.snapshot:
                starts = [(self.snapshot.get(id(p)), p) for p in tensors]
                still = sum(s is not None and torch.equal(s[1], p.detach()) for s, p in starts)
            self.emit(
                "held",
                opt=info.number,
                steps=info.steps,
                tensors=len(tensors),
                frozen=frozen,
                foreign=foreign[:20],
                n_foreign=len(foreign),
                unchanged=still,
                graded=sum(id(p) in self.graded for p in tensors),
            )

    def _write_schedulers(self) -> None:
        """Schedulers that were made and never stepped, but for those inside of others."""
        told = getattr(self, "told_schedulers", {})
        for key, number in told.items():
            functions = getattr(self.schedulers.get(key), "lr_lambdas", None)
            if functions and callable(functions[0]):
                self.emit("lambda_curve", id=number, points=_curve_of(functions[0]))
        inner = {id(one) for s in self.schedulers.values() for one in _held_by(s)}
        for key, scheduler in self.schedulers.items():
            if key in told or key in inner:
                continue
            info = self.optimizers.get(id(scheduler.optimizer))
            self.emit("scheduler_unused", cls=type(scheduler).__name__, opt=info.number if info else None)

    def _find_twins(self, last: bool = False) -> None:
        """Other modules of the same shape as the trained model: averages of its weights, frozen copies of it."""
        if (self.train_epochs > 2 and not last) or self.last_trained is None:
            return
        import gc

        model = self.last_trained.info.module
        main = getattr(model, "module", model)
        shapes = [tuple(p.shape) for p in main.parameters()]
        if last:
            for twin, start, buffers in self.twins.values():
                self._write_twin(twin, start, buffers)
            return
        for item in gc.get_objects():
            try:
                if not issubclass(type(item), nn.Module) or item is main or item is model or id(item) in self.twins:
                    continue
                parameters = list(item.parameters())
                if len(parameters) != len(shapes) or [tuple(p.shape) for p in parameters] != shapes:
                    continue
                if parameters[0] is next(main.parameters()) or len(self.twins) > 4:
                    continue
            except Exception:  # half-made objects of other people's
                continue
            start = [p.detach().clone() for p in parameters]
            self.twins[id(item)] = (item, start, [b.detach().clone() for b in item.buffers()])

    def _write_twin(self, twin: nn.Module, start: list[Tensor], buffers: list[Tensor]) -> None:
        trained = self.last_trained.info  # type: ignore[union-attr]
        changed = any(not torch.equal(a, b.detach()) for a, b in zip(start, twin.parameters()))
        floats = [(a, b) for a, b in zip(buffers, twin.buffers()) if b.is_floating_point()]
        moved = any(not torch.equal(a, b) for a, b in floats)
        own = list(trained.module.buffers())
        initial = [(self.snapshot or {}).get(id(b)) for b in own]
        floating = [s for s in initial if s is not None and s[0].is_floating_point()]
        live_moved = any(not torch.equal(s[1], s[0]) for s in floating)
        info = self.models.get(id(twin))
        inside = set(map(id, twin.modules()))
        wrapper = next(
            (m for m in self.models.values() if twin in list(m.module.children()) or id(m.module) in inside), None
        )
        from_model = all(
            torch.equal(a, s[1])
            for a, p in zip(start, trained.module.parameters())
            if (s := (self.snapshot or {}).get(id(p))) is not None
        )
        self.emit(
            "twin",
            model=info.number if info else wrapper.number if wrapper else None,
            cls=type(twin).__name__,
            changed=changed,
            buffers=len(floats),
            buffers_changed=moved,
            live_buffers_changed=live_moved,
            was_initial=from_model,
            training=twin.training,
        )

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
                for name, depth in reported.kept_graphs(frames).items():
                    self.emit("graph_kept", name=name, depth=depth, loc=self.here())
                for name, step in reported.old_snapshots(self, frames).items():
                    self.hints += 5
                    self.emit("old_snapshot", name=name, made_at=step, step=self.step, loc=self.here())

    @quiet
    def look_at_frames(self, event: str) -> None:
        """Find the loop over epochs around this event, and how far it means to go."""
        if len(self.horizon_places) < 12:
            reported.epoch_loops(self, self.session.places.user_frames(), event)


def _curve_of(function: Callable[[int], float]) -> list[list[float]]:
    """What a function of the number of calls gives, at more and more distant calls."""
    points: list[list[float]] = []
    call = 0
    while call <= LONGEST_CURVE and len(points) < 600:
        points.append([call, float(function(call))])
        call += max(1, call // 60)
    return points


def _autocast() -> str:
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return f"{device}:{str(torch.get_autocast_dtype(device)).removeprefix('torch.')}"
    return ""


def _held_by(scheduler: Any) -> list[Any]:
    """What a scheduler keeps, lists unpacked: the schedules that it goes on with after a warm-up are among it."""
    values = list(vars(scheduler).values())
    return values + [item for value in values if isinstance(value, (list, tuple)) for item in value]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else list(value.shape)
    if isinstance(value, (int, float, str, bool)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value][:8]
    return type(value).__name__


def _copy_of(output: Any, grad: bool) -> Any:
    if isinstance(output, Tensor):
        copy = output.detach().clone()
        return copy.requires_grad_(grad) if copy.is_floating_point() else copy
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return tuple(_copy_of(item, grad) for item in output)
    if isinstance(output, list):
        return [_copy_of(item, grad) for item in output]
    if type(output) is dict:
        return {key: _copy_of(value, grad) for key, value in output.items()}
    return None


def _is_from(one: Pass, inputs: Tensor) -> bool:
    """Whether the tensor that a loss was given is the output of this pass, or a few operations away."""
    output = one.output
    if output is None:
        return False
    if output is inputs or (output.data_ptr() == inputs.data_ptr() and output.numel() == inputs.numel()):
        return True
    node, target = inputs.grad_fn, output.grad_fn
    for _ in range(4):
        if node is None or target is None:
            return False
        if node is target:
            return True
        following = [n for n, _ in node.next_functions if n is not None]
        node = following[0] if following else None
    return False


def _reaches(root: Any, output: Any) -> bool:
    """Whether `output` is among the operations that `root` was computed by, close to it."""
    target, found = getattr(output, "grad_fn", None), [getattr(root, "grad_fn", None)]
    if target is None:
        return False
    seen = set(found)
    for node in found:
        if node is target:
            return True
        following = [n for n, _ in node.next_functions if n is not None and n not in seen] if node is not None else []
        if len(seen) < MOST_OPERATIONS:
            seen.update(following)
            found.extend(following)
    return False


def _right_answers(one: Pass) -> dict[str, Any]:
    """How many of the batch are classified right, by the first and among the first five."""
    logits, targets = one.output, one.targets
    if logits is None or targets is None or logits.dim() != 2 or targets.dim() != 1 or len(logits) != len(targets):
        return {}
    if targets.is_floating_point() or logits.shape[1] < 2 or logits.shape[1] > 10_000:
        return {}
    with torch.no_grad():
        scores = logits.detach()
        targets = targets.to(scores.device)
        correct = (scores.argmax(dim=1) == targets).sum().item()
        found: dict[str, Any] = {"correct": correct}
        if scores.shape[1] > 2 and not one.fields["grad"]:
            best = scores.topk(min(5, scores.shape[1]), dim=1).indices == targets[:, None]
            found["top"] = {k: best[:, :k].any(dim=1).sum().item() for k in (2, 3, 5) if k < scores.shape[1]}
    return found
