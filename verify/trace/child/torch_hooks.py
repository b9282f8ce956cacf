"""Hooks into torch: each tells the recorder what the script does, and changes nothing of it."""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import cuda, loaders, rates, saving, steps
from .backward import backward as run_backward
from .events import finite
from .quiet import quiet
from .recorder import Recorder
from .tensors import describe_scores, describe_target, describe_weights

LOSSES = (
    "cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss", "kl_div", "multi_margin_loss", "multilabel_soft_margin_loss", "gaussian_nll_loss",
    "soft_margin_loss",
)  # fmt: skip
# Those whose third argument is a weight.
WEIGHTED = ("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")
# Full statistics of a loss's input for so many calls, then for every so many.
DESCRIBED, DESCRIBED_EVERY = 40, 25
# Steps in which the optimizers of clipped gradients are looked for.
HOLDERS_LOOKED_AT = 60
# Calls of functional gradients that are written down.
MOST_FUNCTIONAL = 50


def install(session: Any) -> None:
    """Install all hooks; called right after torch was imported."""
    recorder = session.recorder = Recorder(session)
    if session.settings["fake_cuda"]:
        cuda.pretend(session)
    else:
        cuda.watch(session)
    loaders.install(recorder)
    _hook_modules(recorder)
    _hook_losses(recorder)
    _hook_backward(recorder)
    _hook_optimizers(recorder)
    _hook_schedulers(recorder)
    _hook_clipping(recorder)
    _hook_amp(recorder)
    _hook_seeds(recorder)
    _hook_distributed(recorder)
    saving.install(recorder)
    session.emit("torch", version=torch.__version__, cuda=torch.cuda.is_available(), threads=torch.get_num_threads())


def _active(recorder: Recorder) -> bool:
    return recorder.session.is_recording and not recorder.is_probing


def _hook_modules(recorder: Recorder) -> None:
    original = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if recorder.inside or recorder.is_probing or torch.jit.is_tracing() or not recorder.session.follow_thread():
            return original(module, *args, **kwargs)
        info = recorder.info(module)
        if info is None:
            return original(module, *args, **kwargs)
        return recorder.forward(info, original, args, kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    _hook_constructor(recorder)
    _hook_modes(recorder)
    _hook_module_zero_grad(recorder)


def _hook_constructor(recorder: Recorder) -> None:
    """Remember the arguments of the user's own constructors, so that probes can build the model anew."""
    original = nn.Module.__init__

    def init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(module, *args, **kwargs)
        frame = sys._getframe(1)
        code = frame.f_code
        own = getattr(type(module).__init__, "__code__", None)
        if code is not own or code.co_flags & 0b1100 or not recorder.session.places.file(code):
            return
        names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        values = {name: frame.f_locals.get(name) for name in names}
        if all(map(_is_simple, values.values())):
            recorder.constructed[id(module)] = (type(module), values)

    nn.Module.__init__ = init  # type: ignore[method-assign]


def _is_simple(value: Any, depth: int = 3) -> bool:
    if isinstance(value, (tuple, list)):
        return depth > 0 and len(value) < 100 and all(_is_simple(item, depth - 1) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, type))


def _hook_modes(recorder: Recorder) -> None:
    original = nn.Module.train
    inside = [False]

    def train(module: nn.Module, mode: bool = True) -> nn.Module:
        if inside[0] or not _active(recorder):
            return original(module, mode)
        inside[0] = True
        try:
            result = original(module, mode)
        finally:
            inside[0] = False
        info = recorder.models.get(id(module))
        if info is not None and not recorder.inside:
            recorder.emit("mode", model=info.number, training=bool(mode), loc=recorder.here())
        return result

    nn.Module.train = train  # type: ignore[method-assign]


def _hook_module_zero_grad(recorder: Recorder) -> None:
    original = nn.Module.zero_grad

    def zero_grad(module: nn.Module, set_to_none: bool = True) -> None:
        original(module, set_to_none)
        if _active(recorder):
            ids = {id(p) for p in module.parameters()}
            for info in recorder.optimizers.values():
                if any(id(p) in ids for p in info.probes):
                    steps.zero(recorder, info)

    nn.Module.zero_grad = zero_grad  # type: ignore[method-assign]


def _hook_losses(recorder: Recorder) -> None:
    from torch.nn import functional

    for name in LOSSES:
        original = getattr(functional, name, None)
        if original is not None:
            setattr(functional, name, _loss_hook(recorder, name, original))


def _loss_hook(recorder: Recorder, name: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    count = [0]

    @functools.wraps(original)
    def loss(input: Any, target: Any, *args: Any, **options: Any) -> Tensor:  # noqa: A002  (torch's own names)
        output = original(input, target, *args, **options)
        if not _active(recorder) or not isinstance(input, Tensor) or not isinstance(target, Tensor):
            return output
        if not recorder.skips(output.requires_grad) and not torch.jit.is_tracing() and output.device.type != "meta":
            count[0] += 1
            full = count[0] <= DESCRIBED or count[0] % DESCRIBED_EVERY == 0
            recorder.last_call = (name, original, args, dict(options), target)
            if args and name in WEIGHTED and isinstance(args[0], Tensor):
                options = {"weight": args[0], **options}
            if name in ("cross_entropy", "nll_loss") and output.requires_grad and not target.is_floating_point():
                recorder.last_trained_call = (target.detach(), options)
            _note_loss(recorder, name, output, input, target, options, full)
        return output

    return loss


@quiet
def _note_loss(
    recorder: Recorder, name: str, output: Tensor, scores: Tensor, target: Tensor, options: dict[str, Any], full: bool
) -> None:
    fields: dict[str, Any] = {
        "fn": name,
        "value": finite(output.detach().item()) if output.numel() == 1 else None,
        "reduction": options.get("reduction", "mean"),
        "grad": torch.is_grad_enabled(),
        "needs_grad": output.requires_grad,
        "smoothing": options.get("label_smoothing", 0.0),
        **({"log_target": True} if options.get("log_target") else {}),
        "n": len(scores) if scores.dim() else 1,
        "loc": recorder.here(),
    }
    if full:
        fields["input"] = describe_scores(scores)
        fields["target"] = describe_target(target, options.get("ignore_index", -100))
        fields.update(describe_weights(target, options))
    if target.dim() == 1 and not target.is_floating_point():
        fields["target_tensor"] = target
    recorder.note_loss(fields, output, scores)


def _hook_backward(recorder: Recorder) -> None:
    original = torch.autograd.backward

    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **options: Any) -> None:
        if recorder.backward_depth or not _active(recorder):
            return original(tensors, *args, **options)
        return run_backward(recorder, tensors, original, (tensors, *args), options)

    torch.autograd.backward = backward
    engine = torch.autograd.grad

    @functools.wraps(engine)
    def grad(outputs: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        result = engine(outputs, inputs, *args, **options)
        if _active(recorder) and not recorder.inside and not recorder.backward_depth:
            recorder.emit("grad_call", step=recorder.step, loc=recorder.here())
        return result

    torch.autograd.grad = grad
    for name in ("grad", "grad_and_value"):
        setattr(torch.func, name, _functional(recorder, getattr(torch.func, name)))


def _functional(recorder: Recorder, original: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.func.grad` and its like: training without a backward pass and without an optimizer of torch's."""

    @functools.wraps(original)
    def transform(*args: Any, **options: Any) -> Any:
        function = original(*args, **options)

        def gradient(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            if _active(recorder) and not recorder.inside and recorder.functional_calls < MOST_FUNCTIONAL:
                recorder.functional_calls += 1
                recorder.emit("grad_call", step=recorder.step, loc=recorder.here())
            return result

        return functools.wraps(function)(gradient)

    return transform


def _hook_optimizers(recorder: Recorder) -> None:
    from torch.optim import optimizer as module

    base = module.Optimizer
    original_init, original_zero = base.__init__, base.zero_grad

    def init(optimizer: Any, *args: Any, **options: Any) -> None:
        original_init(optimizer, *args, **options)
        _make_skippable(recorder, type(optimizer))
        if _active(recorder):
            steps.optimizer_info(recorder, optimizer)

    def zero_grad(optimizer: Any, *args: Any, **options: Any) -> None:
        original_zero(optimizer, *args, **options)
        if _active(recorder):
            steps.zero(recorder, steps.optimizer_info(recorder, optimizer))

    base.__init__ = init  # type: ignore[method-assign]
    base.zero_grad = functools.wraps(original_zero)(zero_grad)  # type: ignore[method-assign]
    original_load = base.load_state_dict

    def load_state_dict(optimizer: Any, state_dict: Any) -> None:
        original_load(optimizer, state_dict)
        if _active(recorder):
            number = steps.optimizer_info(recorder, optimizer).number
            entries = len(state_dict.get("state", {})) if isinstance(state_dict, dict) else None
            recorder.emit("optimizer_loaded", opt=number, entries=entries, step=recorder.step, loc=recorder.here())

    base.load_state_dict = functools.wraps(original_load)(load_state_dict)  # type: ignore[method-assign]


def _make_skippable(recorder: Recorder, cls: type) -> None:
    """Wrap `step` of an optimizer class: it is written down, and left out in fast-forward."""
    original = cls.__dict__.get("step")
    if original is None or getattr(original, "_watched", False):
        if original is None and cls.__mro__[1].__name__ != "Optimizer":
            _make_skippable(recorder, cls.__mro__[1])
        return
    depth = [0]

    @functools.wraps(original)
    def step(optimizer: Any, *args: Any, **options: Any) -> Any:
        if not _active(recorder) or depth[0]:
            return original(optimizer, *args, **options)
        closure = options.get("closure") or next((a for a in args if callable(a)), None)
        if recorder.fast:
            steps.optimizer_info(recorder, optimizer)
            result = closure() if closure is not None else None
            steps.after_step(recorder, optimizer, closure is not None)
            return result
        steps.before_step(recorder, optimizer)
        depth[0] += 1
        recorder.step_depth += 1
        try:
            result = original(optimizer, *args, **options)
        finally:
            depth[0] -= 1
            recorder.step_depth -= 1
        steps.after_step(recorder, optimizer, closure is not None)
        return result

    step._watched = True  # type: ignore[attr-defined]
    cls.step = step  # type: ignore[attr-defined]


def _hook_schedulers(recorder: Recorder) -> None:
    from torch.optim import lr_scheduler

    base = lr_scheduler.LRScheduler
    original_init = base.__init__
    depth = [0]

    def wrap(cls: type) -> None:
        for one in cls.__mro__:
            original = one.__dict__.get("step")
            if original is not None and not getattr(original, "_watched", False) and one is not object:
                one.step = watched(original)  # type: ignore[attr-defined]

    def watched(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def step(scheduler: Any, *args: Any, **options: Any) -> None:
            depth[0] += 1
            try:
                original(scheduler, *args, **options)
            finally:
                depth[0] -= 1
            from_torch = sys._getframe(1).f_code.co_filename.endswith("lr_scheduler.py")
            if depth[0] == 0 and _active(recorder) and not from_torch:
                _note_schedule(recorder, scheduler, args, options)

        step._watched = True  # type: ignore[attr-defined]
        return step

    def init(scheduler: Any, *args: Any, **options: Any) -> None:
        wrap(type(scheduler))
        depth[0] += 1
        try:
            original_init(scheduler, *args, **options)
        finally:
            depth[0] -= 1
        if _active(recorder):
            recorder.schedulers[id(scheduler)] = scheduler

    base.__init__ = init  # type: ignore[method-assign]
    # These three do not call the constructor of their base class.
    for name in ("ReduceLROnPlateau", "SequentialLR", "ChainedScheduler"):
        _hook_constructor_of(getattr(lr_scheduler, name), wrap, depth, recorder)


def _hook_constructor_of(cls: type, wrap: Callable[[type], None], depth: list[int], recorder: Recorder) -> None:
    original = cls.__init__  # type: ignore[misc]

    def init(scheduler: Any, *args: Any, **options: Any) -> None:
        wrap(type(scheduler))
        depth[0] += 1
        try:
            original(scheduler, *args, **options)
        finally:
            depth[0] -= 1
        if _active(recorder):
            recorder.schedulers[id(scheduler)] = scheduler

    cls.__init__ = init  # type: ignore[misc]


@quiet
def _note_schedule(recorder: Recorder, scheduler: Any, args: tuple, options: dict) -> None:
    told = getattr(recorder, "told_schedulers", None)
    if told is None:
        told = recorder.told_schedulers = {}  # type: ignore[attr-defined]
    if id(scheduler) not in told:
        told[id(scheduler)] = len(told)
        recorder.emit(
            "scheduler", id=told[id(scheduler)], loc=recorder.here(), **describe_scheduler(recorder, scheduler)
        )
        rates.note_trainer(recorder)
    given = [finite(float(a)) for a in args if isinstance(a, (int, float))]
    given += [finite(float(v)) for v in options.values() if isinstance(v, (int, float))]
    if not given and args and isinstance(args[0], Tensor) and args[0].numel() == 1:
        given = [finite(args[0].item())]
    recorder.emit(
        "sched",
        id=told[id(scheduler)],
        given=given,
        lrs=[float(group["lr"]) for group in scheduler.optimizer.param_groups][:8],
        step=recorder.step,
        epoch=recorder.train_epochs,
        iteration=recorder.current.iteration if recorder.current is not None else None,
        loc=recorder.here(),
    )
    recorder.look_at_frames("sched")
    recorder.look_at_report()


def describe_scheduler(recorder: Recorder, scheduler: Any) -> dict[str, Any]:
    """Class, numbers and optimizer of a scheduler."""
    numbers = {}
    for key, value in vars(scheduler).items():
        if isinstance(value, (int, float, str, bool)) and not key.startswith("__"):
            numbers[key] = value
        elif key in ("milestones", "_milestones", "base_lrs", "eta_mins", "_schedulers"):
            items = value.elements() if hasattr(value, "elements") else value
            numbers[key] = [type(v).__name__ if not isinstance(v, (int, float)) else v for v in list(items)[:20]]
    inner = getattr(scheduler, "_schedulers", None)
    if inner:
        numbers["inner"] = [describe_scheduler(recorder, one) for one in inner[:6]]
    info = recorder.optimizers.get(id(scheduler.optimizer))
    return {
        "cls": type(scheduler).__name__,
        "numbers": {k: v for k, v in numbers.items() if not isinstance(v, float) or v == v},
        "opt": info.number if info else None,
    }


def _hook_clipping(recorder: Recorder) -> None:
    from torch.nn import utils
    from torch.nn.utils import clip_grad as module

    for name in ("clip_grad_norm_", "clip_grad_value_"):
        original = getattr(module, name)
        hook = _clip_hook(recorder, name, original)
        setattr(module, name, hook)
        setattr(utils, name, hook)


def _clip_hook(recorder: Recorder, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def clip(*args: Any, **options: Any) -> Any:
        if "parameters" in options and not isinstance(options["parameters"], Tensor):
            options["parameters"] = list(options["parameters"])
        elif args and not isinstance(args[0], Tensor):
            args = (list(args[0]), *args[1:])
        result = original(*args, **options)
        if _active(recorder) and not recorder.fast:
            _note_clip(recorder, name, args, options, result)
        return result

    return clip


@quiet
def _note_clip(recorder: Recorder, name: str, args: tuple, options: dict, result: Any) -> None:
    parameters = options.get("parameters", args[0] if args else [])
    limit = options.get("max_norm", options.get("clip_value", args[-1] if args else 0.0))
    if len(args) > 1:
        limit = args[1]
    tensors = parameters if isinstance(parameters, list) else [parameters]
    ids = {id(p) for p in tensors}
    backwards: int | None = None
    norm = finite(float(result)) if isinstance(result, Tensor) and result.numel() == 1 else None
    for info in recorder.optimizers.values():
        if any(id(p) in ids for p in info.probes) or not info.probes:
            backwards = max(backwards or 0, info.backwards)
            info.pending.update(clip=float(limit), grad_norm=norm, clip_fn=name)
    recorder.emit(
        "clip",
        fn=name,
        limit=finite(float(limit)),
        norm=norm,
        backwards=backwards,
        tensors=len(tensors),
        graded=sum(getattr(p, "grad", None) is not None for p in tensors),
        holders=(holders := _holders(recorder, ids)),
        left_out=_left_out(recorder, ids, holders),
        step=recorder.step,
        iteration=recorder.current.iteration if recorder.current is not None else None,
        loc=recorder.here(),
    )


def _holders(recorder: Recorder, ids: set[int]) -> list[int] | None:
    """The optimizers that hold some of these tensors; None when enough of them were looked at."""
    if recorder.step >= HOLDERS_LOOKED_AT:
        return None
    infos = list(recorder.optimizers.values())[:8]
    return [info.number for info in infos if any(id(p) in ids for p in info.parameters())]


def _left_out(recorder: Recorder, ids: set[int], holders: list[int] | None) -> int | None:
    """How many tensors with a gradient the one optimizer of these tensors holds beside them."""
    if holders is None or len(holders) != 1:
        return None
    info = next(info for info in recorder.optimizers.values() if info.number == holders[0])
    return sum(p.grad is not None and id(p) not in ids for p in info.parameters())


def _hook_amp(recorder: Recorder) -> None:
    from torch.amp import GradScaler, autocast_mode

    def scaler_hook(name: str) -> None:
        original = getattr(GradScaler, name)

        @functools.wraps(original)
        def method(scaler: Any, *args: Any, **options: Any) -> Any:
            if not _active(recorder):
                return original(scaler, *args, **options)
            factor = scaler.get_scale() if name == "scale" and scaler._enabled and recorder.step < 10 else None
            recorder.emit(
                "scaler",
                call=name,
                step=recorder.step,
                enabled=scaler._enabled,
                factor=factor,
                loc=recorder.here(),
            )
            if name == "step":
                recorder.in_scaler_step = True
                if recorder.fast and scaler._enabled:
                    try:
                        return args[0].step()
                    finally:
                        recorder.in_scaler_step = False
            try:
                return original(scaler, *args, **options)
            finally:
                if name == "step":
                    recorder.in_scaler_step = False

        setattr(GradScaler, name, method)

    for name in ("scale", "unscale_", "step", "update"):
        scaler_hook(name)
    original_asked, told = GradScaler.is_enabled, set()

    @functools.wraps(original_asked)
    def is_enabled(scaler: Any) -> bool:
        if _active(recorder) and (place := recorder.here()) not in told:
            told.add(place)
            recorder.emit("scaler_asked", loc=place)
        return original_asked(scaler)

    GradScaler.is_enabled = is_enabled  # type: ignore[method-assign]
    original_init, original_enter = autocast_mode.autocast.__init__, autocast_mode.autocast.__enter__

    def init(
        context: Any, device_type: str, dtype: Any = None, enabled: bool = True, *args: Any, **options: Any
    ) -> None:
        original_init(context, device_type, dtype, enabled, *args, **options)
        if _active(recorder) and not recorder.inside:
            wanted = dtype or (torch.float16 if str(device_type).startswith("cuda") else torch.bfloat16)
            name = str(wanted).removeprefix("torch.")
            context._kit_place = (recorder.here(), name)
            recorder.emit(
                "autocast", call="made", device=str(device_type), dtype=name, enabled=bool(enabled), loc=recorder.here()
            )

    entered: dict[str, int] = {}

    def enter(context: Any) -> Any:
        result = original_enter(context)
        place = getattr(context, "_kit_place", None)
        if place and _active(recorder):
            entered[place[0]] = entered.get(place[0], 0) + 1
            if entered[place[0]] == 1:
                recorder.emit("autocast", call="entered", dtype=place[1], loc=place[0])
        return result

    autocast_mode.autocast.__init__ = init  # type: ignore[method-assign]
    autocast_mode.autocast.__enter__ = enter  # type: ignore[method-assign]


def _hook_seeds(recorder: Recorder) -> None:
    def hook(holder: Any, name: str, label: str) -> None:
        original = getattr(holder, name)

        @functools.wraps(original)
        def seed(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if _active(recorder) and not recorder.inside and not recorder.is_seeding:
                place = recorder.here()
                if place:
                    value = args[0] if args and isinstance(args[0], int) else None
                    recorder.emit(
                        "seed", fn=label, value=value, step=recorder.step, epoch=recorder.train_epochs, loc=place
                    )
            return result

        setattr(holder, name, seed)

    def hook_restoring(holders: list[Any], name: str, label: str) -> None:
        """A state that is put back: what was seeded in between is none of the training's business."""
        original = getattr(holders[0], name)

        @functools.wraps(original)
        def restore(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if _active(recorder) and not recorder.inside and not recorder.is_seeding:
                recorder.emit("state_put_back", fn=label, step=recorder.step, loc=recorder.here())
            return result

        for holder in holders:
            setattr(holder, name, restore)

    hook(torch, "manual_seed", "torch.manual_seed")
    hook(random, "seed", "random.seed")
    hook_restoring([torch, torch.random], "set_rng_state", "torch.manual_seed")
    hook_restoring([random], "setstate", "random.seed")
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        hook(numpy.random, "seed", "numpy.random.seed")
        hook_restoring([numpy.random], "set_state", "numpy.random.seed")


def _hook_distributed(recorder: Recorder) -> None:
    from torch.utils.data.distributed import DistributedSampler

    original = DistributedSampler.set_epoch

    def set_epoch(sampler: Any, epoch: int) -> None:
        original(sampler, epoch)
        if _active(recorder):
            recorder.emit("set_epoch", epoch=epoch, train_epoch=recorder.train_epochs, loc=recorder.here())

    DistributedSampler.set_epoch = set_epoch  # type: ignore[method-assign]
    try:
        from torch.nn.parallel import DistributedDataParallel
    except ImportError:
        return
    original_init = DistributedDataParallel.__init__

    def init(wrapper: Any, module: nn.Module, *args: Any, **options: Any) -> None:
        original_init(wrapper, module, *args, **options)
        if _active(recorder):
            recorder.wrapped_models[id(module)] = id(wrapper)
            world = torch.distributed.get_world_size()
            recorder.emit("ddp", rank=os.environ.get("RANK"), world=world, loc=recorder.here())

    DistributedDataParallel.__init__ = init  # type: ignore[method-assign]
