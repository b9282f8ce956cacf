"""Every rule about runs, on records written by hand: a planted bug that it finds, and look-alikes that it lets pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.verify.run_records import BATCHES, Run
from verify.report import Check, Status
from verify.rules import Subject, all_rules
from verify.trace.record import FORMAT, Event, Record
from verify.watch import _apply, judge

MODULES = (
    "loop", "optimizer", "schedule", "loss", "evaluation", "checkpoint", "reproducibility", "precision", "averaging",
    "distributed", "running",
)  # fmt: skip
BAD = (Status.FAIL, Status.WARN, Status.ERROR)
Change = Callable[[Run], object]


def trained(event: Event) -> bool:
    return bool(event["trained"])


def evaluated(event: Event) -> bool:
    return not event["trained"]


def row(name: str) -> Callable[[Event], bool]:
    return lambda event: bool(event["name"] == name)


def change_rows(run: Run, name: str = "", **fields: object) -> Run:
    """Change the rows of the parameter table whose name begins with `name`."""
    for event in run.events:
        if event["kind"] == "params":
            for one in event["rows"]:
                if one["name"].startswith(name):
                    one.update(fields)
    return run


def change_group(run: Run, **fields: object) -> Run:
    """Change the first group of the optimizer."""
    for event in run.events:
        if event["kind"] == "optimizer":
            event["groups"][0].update(fields)
    return run


def change_scheduler(run: Run, cls: str, **numbers: object) -> Run:
    return run.put("scheduler", cls=cls, numbers=numbers)


def change_inputs(run: Run, **fields: object) -> Run:
    """Change the description of what the loss gets."""
    return run.put("loss", input=lambda event: {**event["input"], **fields})


def change_values(run: Run, value: Callable[[list[Event]], dict[str, float]]) -> Run:
    """Change the script's variables; `value` gets the passes of the evaluation before."""
    passes: list[Event] = []
    for event in run.events:
        if event["kind"] == "backward":
            passes = []
        elif event["kind"] == "pass" and not event["trained"]:
            passes.append(event)
        elif event["kind"] == "held_values":
            event["values"] = {**event["values"], **value(passes)}
    return run


def rates(run: Run, *values: float) -> Run:
    """Learning rates epoch by epoch, of the steps and of the scheduler after them."""
    run.put("step", lrs=lambda event: [values[event["epoch"]]])
    return run.put("sched", lrs=lambda event: [values[min(event["epoch"] + 1, len(values) - 1)]])


def per_batch(run: Run) -> Run:
    """The scheduler steps after each batch instead of each epoch."""
    run.drop("sched")
    return run.after(
        "step", "sched", id=0, given=[], lrs=lambda e: e["lrs"], step=lambda e: e["n"], epoch=0, iteration=None
    )


def accumulated(run: Run, size: int, ratio: float) -> Run:
    """A step after every `size` batches only."""
    run.drop("step", where=lambda event: event["n"] % size != 0)
    run.put("step", backwards=size, backwards_since_clear=size, batches=size, passes=size)
    run.put("iter_end", lambda event: event["loader"] == 0, steps=BATCHES // size)
    return run.put("backward", ratio=ratio)


def left_over(run: Run, whole: int) -> Run:
    """Windows of 4 batches in epochs of 6, of which the last two make no step."""
    run.drop("step", where=lambda event: (event["n"] - 1) % 6 != 3)
    run.put("step", backwards=4, backwards_since_clear=4, batches=4, passes=4)
    run.put("step", lambda event: event["n"] > 6, backwards=6, batches=6, passes=6)
    run.put("iter_end", lambda event: event["loader"] == 0, steps=1, length=whole)
    return run.put("loader", lambda event: event["id"] == 0, length=whole)


def stepped_at_the_end(run: Run) -> Run:
    """As `left_over`, with the step of the last window when the loader has none left."""
    left_over(run, 6)
    step = next(event for event in run.events if event["kind"] == "step")
    for end in [event for event in run.events if event["kind"] == "iter_end" and event["loader"] == 0]:
        run.events.insert(run.events.index(end) + 1, {**step, "backwards_since_clear": 2, "batches": 2, "passes": 2})
    return run


def second_optimizer(run: Run, tensors: int = 3, unchanged: int = 3, graded: int = 3) -> Run:
    group = {"lr": 0.1, "tensors": tensors, "numel": 10, "vectors": 0, "frozen": 0}
    run.more("optimizer", id=1, cls="Adam", groups=[group], loc="train.py:25")
    counts = {"tensors": tensors, "frozen": 0, "unchanged": unchanged, "graded": graded}
    return run.more("held", opt=1, steps=0, foreign=[], n_foreign=0, **counts)


def twin(run: Run, **fields: object) -> Run:
    common = {
        "model": None, "cls": "Net", "changed": True, "was_initial": True, "buffers": 1, "buffers_changed": True,
        "live_buffers_changed": True, "training": False,
    }  # fmt: skip
    return run.more("twin", **{**common, **fields})


def averages(run: Run, *decays: float, rest: float = 1e-6) -> Run:
    for n, decay in enumerate(decays):
        run.more("average", id=0, cls="Net", step=10 + 3 * n, decay=decay, rest=rest)
    return run


def evaluate_twin(run: Run, **fields: object) -> Run:
    run.put("pass", evaluated, model=1)
    return twin(run, model=1, **fields)


def without_loaders(run: Run, digests: Callable[[Event], str]) -> Run:
    """A loop over slices of a tensor; `digests` names the inputs of each training pass."""
    run.drop("loader", "iter_begin", "iter_end")
    run.put("pass", iteration=None, inputs=digests)
    return run.put("backward", iteration=None).put("step", iteration=None, epoch=None)


def distributed(run: Run) -> Run:
    return run.put("loader", sampler="DistributedSampler", shuffle=False)


def scaled(run: Run, *around: str) -> Run:
    """A GradScaler: events before a backward pass (scale), before a step (unscale_, step) and after it (update)."""
    if "scale" in around:
        run.before("backward", "scaler", call="scale", enabled=True)
    for name in ("unscale_", "clip", "step"):
        if name == "clip" and name in around:
            run.before("step", "clip", fn="clip_grad_norm_", limit=1.0, norm=2.0, backwards=1, tensors=3)
        elif name in around:
            run.before("step", "scaler", call=name, enabled=True)
    if "update" in around:
        run.after("step", "scaler", call="update", enabled=True)
    return run.put("step", scaled="step" in around)


def clipped(run: Run, **fields: object) -> Run:
    common = {"fn": "clip_grad_norm_", "limit": 1.0, "norm": 3.0, "backwards": 1, "tensors": 3}
    return run.before("step", "clip", **{**common, **fields})


def autocast(run: Run, call: str, dtype: str = "float16", **fields: object) -> Run:
    return run.before("backward", "autocast", call=call, dtype=dtype, device="cuda", enabled=True, **fields)


def weights_loaded(run: Run, **fields: object) -> Run:
    common = {
        "model": 0, "cls": "Net", "strict": False, "given": 9, "own": 9, "matched": 9, "missing": [], "unexpected": [],
        "aliased": 0, "made_at": None, "step": 0, "loc": "train.py:15",
    }  # fmt: skip
    return run.before("mode", "weights_loaded", lambda event: event is run.events[-1], **common).more(
        "weights_loaded", **{**common, **fields}
    )


def saved_weights(run: Run, **fields: object) -> Run:
    for event in run.events:
        if event["kind"] == "save":
            event["content"]["keys"]["model"].update(fields)
    return run


def resumed(run: Run, **found: object) -> Run:
    return run.more("resume", **{"lost": [], "back": [], **found})


def best_when(run: Run, chosen: Callable[[int], bool]) -> Run:
    return run.drop("save", where=lambda event: not chosen(event["epoch"]))


def evaluations_up_and_down(run: Run, losses: tuple[float, ...]) -> Run:
    """The same loss for every batch of an evaluation, another one in each epoch; accuracy follows it."""
    epoch = -1
    for event in run.events:
        epoch += event["kind"] == "mode" and event["training"]
        if event["kind"] == "pass" and not event["trained"]:
            event["losses"], event["correct"] = [losses[epoch]], round(event["n"] * (1 - losses[epoch] / 4))
    return run


NO_TIME = ("MOD104", "MOD105")


def crash(run: Run, error: str = "ValueError", **fields: object) -> Run:
    run.put("run", code=1)
    return run.more("crash", error=error, message="no such thing", more="", loc="train.py:7", module="thing", **fields)


def untrained(run: Run) -> Run:
    return run.drop(
        "backward", "step", "pass", "loss", "iter_begin", "iter_end", "sched", "params", "held", "scheduler"
    )


def nothing(run: Run) -> None:
    pass


UP_AND_DOWN = (2.0, 2.4, 1.6, 2.8, 1.2, 3.2, 0.8)
FINDING = {"measured": "a", "expected": "b", "message": "c", "location": "train.py:1", "hint": "d"}
SGD, ADAM = {"cls": "SGD"}, {"cls": "Adam"}

PLANTED: list[tuple[str, str, Change]] = [
    # how the script ends
    ("RUN071", "crash", crash),
    ("RUN071", "exit-code", lambda run: run.put("run", code=3, log="Killed\n")),
    ("RUN071", "crash-before-training", lambda run: crash(untrained(run))),
    ("RUN072", "cuda", lambda run: run.more("cuda_asked", what=".cuda()", loc="train.py:9")),
    ("RUN073", "import", lambda run: crash(untrained(run), "ModuleNotFoundError")),
    ("RUN074", "untrained", untrained),
    ("OPT713", "misnamed", lambda run: run.more("group_key", opt=0, key="learning_rate", step=1)),
    ("RUN076", "one-step", lambda run: run.more("ended", why="time", step=1)),
    ("RUN075", "input", lambda run: run.more("input", prompt="Go on?", loc="train.py:2")),
    # averages of the weights
    ("EMA041", "never-called", twin),
    ("EMA042", "unchanged", lambda run: evaluate_twin(run, changed=False)),
    ("EMA043", "stale", lambda run: evaluate_twin(run, buffers_changed=False)),
    ("EMA044", "swapped", lambda run: averages(run, 0.05, 0.05, 0.05)),
    # several processes
    ("DST051", "no-set-epoch", distributed),
    (
        "DST052",
        "inner",
        lambda run: run.put("pass", trained, wrapped=True).more("ddp", rank="0", world=2, loc="t.py:9"),
    ),
    ("DST053", "padded", lambda run: distributed(run).more("ddp", rank="0", world=3, loc="train.py:9")),
    # reproducibility
    (
        "REP021",
        "differs",
        lambda run: run.drop("repeat").more("repeat", equal=False, compared=20, step=3, first=1.0, second=1.1),
    ),
    (
        "REP021",
        "differs-on-a-gpu",
        lambda run: (
            run.put("torch", lambda e: True, cuda=True)
            .drop("repeat")
            .more("repeat", equal=False, compared=20, step=1, first=1.0, second=1.1)
        ),
    ),
    (
        "REP023",
        "each-epoch",
        lambda run: run.before("sched", "seed", fn="torch.manual_seed", value=0, step=lambda e: e["step"]),
    ),
    # mixed precision
    ("AMP031", "clip", lambda run: scaled(run, "scale", "clip", "step", "update")),
    ("AMP032", "no-update", lambda run: scaled(run, "scale", "step")),
    ("AMP033", "no-scaler", lambda run: autocast(run, "made")),
    ("AMP034", "not-entered", lambda run: autocast(run, "made", "bfloat16")),
    ("AMP035", "plain-step", lambda run: scaled(run, "scale", "update")),
    ("AMP035", "unscaled-loss", lambda run: scaled(run, "step", "update")),
    # the loss
    ("LOS901", "probabilities", lambda run: change_inputs(run, min=0.0, max=1.0, simplex=True)),
    ("LOS902", "nll-of-logits", lambda run: run.put("loss", fn="nll_loss")),
    (
        "LOS902",
        "sigmoid-twice",
        lambda run: change_inputs(run.put("loss", fn="binary_cross_entropy_with_logits"), min=0.1, max=0.9),
    ),
    ("LOS903", "negative", lambda run: run.put("backward", ratio=-1.0, value=lambda e: -e["value"])),
    ("LOS904", "sum", lambda run: run.put("backward", reduction="sum")),
    ("LOS904", "summed-by-hand", lambda run: run.put("backward", chain=["SumBackward0", "loss"], reduction="none")),
    ("LOS905", "no-gradient", lambda run: run.put("step", grads="none")),
    ("LOS906", "clamp", lambda run: run.put("backward", chain=["ClampBackward1", "loss"])),
    (
        "LOS907",
        "broadcast",
        lambda run: change_inputs(run.put("loss", fn="mse_loss"), shape=[16, 1]).put(
            "loss", target={"shape": [16], "float": True}
        ),
    ),
    (
        "LOS908",
        "overflow",
        lambda run: run.drop("probe").more(
            "probe", name="loop", result={"saturated": {"fn": "cross_entropy", "finite": False}}
        ),
    ),
    (
        "LOS908",
        "log-of-softmax",
        lambda run: run.put("backward", chain=["MeanBackward0", "LogBackward0", "SoftmaxBackward0"]),
    ),
    ("LOS909", "columns", lambda run: change_inputs(run, min=0.0, max=1.0, columns=True)),
    ("LOS911", "wide-head", lambda run: change_inputs(run, shape=[16, 1000])),
    ("LOS912", "relu", lambda run: change_inputs(run, min=0, zeros=0.4)),
    # the optimizer
    ("OPT701", "left-out", lambda run: change_rows(run, "stem", opts=[], changed=False)),
    ("OPT702", "foreign", lambda run: run.put("held", n_foreign=2, foreign=[[10, 8], [10]])),
    ("OPT703", "frozen", lambda run: run.put("step", grads="none").put("held", frozen=3)),
    (
        "OPT704",
        "alternating",
        lambda run: change_rows(second_optimizer(run), opts=[0, 1]).after("step", "step", **second_step()),
    ),
    ("OPT705", "zero", lambda run: run.put("step", lrs=[0.0])),
    ("OPT705", "one-group", lambda run: run.put("step", lrs=[0.1, 0.0])),
    ("OPT706", "swapped", lambda run: change_group(run.put("optimizer", **ADAM), betas=[0.999, 0.9])),
    ("OPT706", "complement", lambda run: change_group(run, momentum=0.1)),
    ("OPT708", "name-mismatch", lambda run: two_groups(run, decayed_vectors=3, spared=2)),
    ("OPT709", "adam", lambda run: change_group(run.put("optimizer", **ADAM), weight_decay=0.05)),
    ("OPT710", "moved", lambda run: change_rows(run, "stem", trainable=False, moved_frozen=True)),
    ("OPT711", "drift", lambda run: change_rows(run, "norm", trainable=False, was_trainable=False, changed=False)),
    ("OPT712", "huge", lambda run: run.put("step", ratio=20.0)),
    ("OPT712", "tiny", lambda run: run.put("step", ratio=1e-10)),
    # the schedule
    (
        "LRS801",
        "never",
        lambda run: run.drop("sched", "scheduler").more("scheduler_unused", cls="StepLR", opt=0),
    ),
    ("LRS802", "too-long", lambda run: change_scheduler(run, "CosineAnnealingLR", T_max=200)),
    ("LRS802", "too-short", lambda run: change_scheduler(run, "CosineAnnealingLR", T_max=2)),
    ("LRS802", "late-milestone", lambda run: change_scheduler(run, "MultiStepLR", milestones=[30, 60])),
    ("LRS803", "per-batch", lambda run: per_batch(change_scheduler(run, "ExponentialLR", gamma=0.7))),
    ("LRS804", "another", lambda run: second_optimizer(run).put("scheduler", opt=1)),
    (
        "LRS805",
        "min-of-accuracy",
        lambda run: metric_given(change_scheduler(run, "ReduceLROnPlateau", mode="min"), "val_acc"),
    ),
    (
        "LRS806",
        "too-early",
        lambda run: run.before("mode", "sched", lambda e: e is run.events[9], id=0, given=[], lrs=[0.1], epoch=0),
    ),
    ("LRS807", "jump", lambda run: rates(run, 0.1, 0.01, 0.1, 0.05)),
    ("LRS819", "floor-is-the-start", lambda run: rates(run, 0.1, 0.1, 0.1, 0.1)),
    ("LRS809", "lags", lambda run: run.put("sched", given=lambda e: [e["epoch"] - 1])),
    ("LRS810", "gone", lambda run: rates(run, 0.1, 0.01, 0.0, 0.0)),
    # the loop
    (
        "GRD306",
        "values",
        lambda run: run.more("dead_part", model=0, name="qkv.weight", parts=3, dead=2, rows=24),
    ),
    ("TRN403", "every-second-step", lambda run: run.put("step", cleared=lambda e: e["n"] % 2 == 0)),
    (
        "OPT722",
        "a-digit-too-many",
        lambda run: change_group(run, weight_decay=10.0, lr=3e-3).put("optimizer", cls="AdamW"),
    ),
    ("OPT722", "of-another-optimizer", lambda run: change_group(run, weight_decay=0.1)),
    ("TRN403", "never-cleared", lambda run: run.put("step", cleared=False)),
    ("TRN404", "cleared-too-late", lambda run: run.put("step", zeroed_after_backward=True, grads="none")),
    ("TRN405", "no-step", lambda run: run.drop("step").put("held", steps=0, unchanged=3)),
    ("TRN406", "twice", lambda run: run.put("step", lambda event: event["n"] % 2 == 0, backwards=0)),
    (
        "TRN407",
        "lost",
        lambda run: run.put("pass", lambda e: trained(e) and e["step"] >= 6, training=False, norms=0.0, drops=0.0),
    ),
    ("TRN407", "never", lambda run: run.put("pass", trained, training=False, norms=0.0, drops=0.0)),
    ("TRN408", "early", lambda run: clipped(run, backwards=0)),
    ("TRN409", "throttled", lambda run: clipped(run, norm=300.0)),
    ("TRN409", "limit-zero", lambda run: clipped(run, limit=0.0)),
    ("TRN410", "added-up", lambda run: accumulated(run, 2, 1.0)),
    ("TRN411", "tail", lambda run: left_over(run, 6)),
    (
        "TRN412",
        "break",
        lambda run: run.put("iter_end", lambda e: e["loader"] == 0, exhausted=False, batches=3),
    ),
    ("TRN413", "kept", lambda run: run.more("graph_kept", name="total", depth=5, loc="train.py:37")),
    ("TRN414", "nan", lambda run: run.put("backward", lambda e: e["step"] > 5, value="nan")),
    ("TRN414", "gradient", lambda run: run.put("step", lambda e: e["n"] == 7, grads="nonfinite")),
    ("TRN415", "flat", lambda run: run.put("backward", value=2.3)),
    ("TRN415", "worse", lambda run: run.put("backward", value=lambda e: 1.0 + e["step"])),
    ("TRN416", "off", lambda run: run.more("dropout_changed", before=[0.5], after=[0.0], loc="train.py:40", model=0)),
    ("GRD305", "unused", lambda run: change_rows(run, "head", graded=False, changed=False)),
    ("GRD305", "none", lambda run: change_rows(run, graded=False, changed=False)),
    ("GRD305", "thawed", lambda run: change_rows(run, "head", was_trainable=False, graded=False, looks=3)),
    ("DAT221", "same-order", lambda run: without_loaders(run, lambda e: str(e["step"] % 6))),
    (
        "DAT221",
        "same-order-of-augmented-images",
        lambda run: without_loaders(run, lambda e: str(e["step"])).put("pass", labels=lambda e: str(e["step"] % 6)),
    ),
    # checkpoints
    ("CKP011", "saved", lambda run: saved_weights(run, made_at=0)),
    (
        "CKP011",
        "loaded-back",
        lambda run: weights_loaded(run, aliased=9, made_at=6, step=24, strict=True),
    ),
    ("CKP011", "held", lambda run: run.more("old_snapshot", name="best_state", made_at=6, step=12, loc="train.py:47")),
    (
        "CKP012",
        "prefix",
        lambda run: weights_loaded(run, matched=0, missing=["0.weight"], unexpected=["module.0.weight"]),
    ),
    ("CKP013", "module", lambda run: saved_weights(run, prefix="module.", first="module.0.weight")),
    ("CKP014", "lost", lambda run: resumed(run, lost=[FINDING])),
    ("CKP015", "back", lambda run: resumed(run, back=[FINDING])),
    ("CKP016", "namespace", lambda run: run.put("saved_file", safe=False, problem="Unsupported global: Namespace")),
    ("CKP019", "initialised", lambda run: run.more("loaded_then", cls="Net", tensors=9, changed=9, first=["0.weight"])),
    # evaluation
    ("EVL601", "train-mode", lambda run: run.put("pass", evaluated, training=True, norms=1.0, drops=1.0, learned=True)),
    ("EVL602", "statistics", lambda run: run.put("pass", evaluated, learned=True)),
    (
        "EVL603",
        "batch-means",
        lambda run: change_values(run, lambda passes: {"val_loss": sum(p["losses"][0] for p in passes) / 3}),
    ),
    (
        "EVL604",
        "loss-over-samples",
        lambda run: change_values(run, lambda passes: {"val_loss": sum(p["losses"][0] for p in passes) / 40}),
    ),
    (
        "EVL604",
        "last-batch",
        lambda run: change_values(run, lambda passes: {"val_acc": passes[-1]["correct"] / 40}),
    ),
    (
        "EVL604",
        "loss-over-batches-times-size",
        lambda run: change_values(
            run, lambda passes: {"val_loss": sum(p["losses"][0] * p["n"] for p in passes) / 48, "val_acc": 0.0}
        ),
    ),
    (
        "EVL604",
        "accuracy-over-batches-times-size",
        lambda run: change_values(run, lambda passes: {"val_acc": 100 * sum(p["correct"] for p in passes) / 48}),
    ),
    (
        "EVL605",
        "break",
        lambda run: run.put("iter_end", lambda e: e["loader"] == 1, exhausted=False, batches=1),
    ),
    (
        "EVL610",
        "worst",
        lambda run: best_when(evaluations_up_and_down(run, UP_AND_DOWN), lambda epoch: epoch in (0, 1, 3, 5)),
    ),
]


def second_step() -> dict[str, object]:
    """A step of another optimizer with the gradients of the one before."""
    return {
        "n": lambda e: e["n"], "opt": 1, "own": 1, "lrs": [0.1], "grads": "ok", "cleared": True, "ratio": 1e-3,
        "zeroed_after_backward": False, "zeroed_at": "", "backwards": 1, "backwards_since_clear": 1, "batches": 1,
        "passes": 1, "closure": False, "scaled": False, "nested": False, "fast": False, "epoch": 0, "iteration": 1,
    }  # fmt: skip


def two_groups(run: Run, decayed_vectors: int, spared: int) -> Run:
    decayed = {"lr": 0.1, "weight_decay": 0.05, "tensors": 9, "numel": 900, "vectors": decayed_vectors, "frozen": 0}
    free = {"lr": 0.1, "weight_decay": 0.0, "tensors": spared, "numel": 30, "vectors": spared, "frozen": 0}
    return run.put("optimizer", cls="AdamW", groups=[decayed, free])


def metric_given(run: Run, name: str) -> Run:
    """The scheduler is given one of the script's numbers, after the evaluation."""
    run.drop("sched")
    return run.after(
        "held_values", "sched", id=0, given=lambda e: [e["values"][name]], lrs=[0.1], epoch=0, iteration=None
    )


HEALTHY: list[tuple[str, str, Change]] = [
    ("RUN071", "ended-by-the-watcher", lambda run: run.put("run", code=1).more("ended", why="time", step=24)),
    ("RUN074", "crash", lambda run: crash(untrained(run))),
    ("OPT713", "own-key", lambda run: run.more("group_key", opt=0, key="lr_scale", step=1)),
    ("RUN076", "enough-steps", lambda run: run.more("ended", why="time", step=24)),
    ("RUN076", "asked-for", lambda run: run.more("ended", why="steps", step=1)),
    (
        "EMA041",
        "saved",
        lambda run: twin(run).put("save", path="ema.pt", content={"kind": "weights", "live": 0}),
    ),
    ("EMA041", "frozen-teacher", lambda run: twin(run, changed=False)),
    ("EMA042", "teacher", lambda run: twin(run, changed=False)),
    ("EMA042", "updated", evaluate_twin),
    ("EMA043", "renewed", evaluate_twin),
    ("EMA044", "right", lambda run: averages(run, 0.95, 0.95, 0.95)),
    (
        "DST051",
        "told",
        lambda run: distributed(run).before("mode", "set_epoch", epoch=0, train_epoch=0),
    ),
    (
        "DST051",
        "evaluation",
        lambda run: run.put("loader", lambda e: e["id"] == 1, sampler="DistributedSampler"),
    ),
    (
        "DST052",
        "wrapper",
        lambda run: run.put("pass", evaluated, wrapped=True).more("ddp", rank="0", world=2, loc="t.py:9"),
    ),
    ("DST053", "even", lambda run: distributed(run).more("ddp", rank="0", world=2, loc="train.py:9")),
    (
        "REP021",
        "rounding-on-a-gpu",
        lambda run: (
            run.put("torch", lambda e: True, cuda=True)
            .drop("repeat")
            .more("repeat", equal=False, compared=9, step=4, first=1.0, second=1.0 + 1e-5)
        ),
    ),
    (
        "REP021",
        "no-seed",
        lambda run: run.drop("repeat", "seed").more("repeat", equal=False, compared=9, step=1, first=1.0, second=2.0),
    ),
    ("REP022", "one-flag", nothing),
    (
        "REP023",
        "seed-plus-epoch",
        lambda run: run.before(
            "sched", "seed", fn="torch.manual_seed", value=lambda e: e["epoch"], step=lambda e: e["step"]
        ),
    ),
    ("AMP031", "unscaled", lambda run: scaled(run, "scale", "unscale_", "clip", "step", "update")),
    ("AMP031", "no-scaler", clipped),
    (
        "AMP031",
        "off-and-asked",
        lambda run: scaled(clipped(run), "scale").put("scaler", enabled=False).more("scaler_asked", loc="train.py:9"),
    ),
    (
        "AMP035",
        "off-and-asked",
        lambda run: scaled(run, "scale").put("scaler", enabled=False).more("scaler_asked", loc="train.py:9"),
    ),
    ("AMP032", "updated", lambda run: scaled(run, "scale", "step", "update")),
    ("AMP033", "bfloat16", lambda run: autocast(run, "made", "bfloat16")),
    ("AMP033", "scaler", lambda run: scaled(autocast(run, "made"), "scale", "step", "update")),
    ("AMP034", "entered", lambda run: autocast(autocast(run, "made"), "entered")),
    ("AMP035", "both", lambda run: scaled(run, "scale", "step", "update")),
    ("LOS901", "log-softmax", lambda run: change_inputs(run, max=0.0, log_simplex=True)),
    (
        "LOS901",
        "probabilities-in-the-evaluation",
        lambda run: run.put(
            "loss", lambda e: not e["grad"], input={"shape": [16, 10], "min": 0, "max": 1, "simplex": True}
        ),
    ),
    (
        "LOS902",
        "nll-of-log-softmax",
        lambda run: change_inputs(run.put("loss", fn="nll_loss"), max=0.0, log_simplex=True),
    ),
    ("LOS902", "bce-of-logits", lambda run: run.put("loss", fn="binary_cross_entropy_with_logits")),
    ("LOS903", "divided", lambda run: run.put("backward", ratio=0.25)),
    (
        "LOS903",
        "two-players",
        lambda run: (
            second_optimizer(run)
            .put("backward", lambda e: e["step"] % 2 == 0, ratio=-1.0)
            .after("step", "step", **second_step())
        ),
    ),
    ("LOS904", "sum-divided", lambda run: run.put("backward", reduction="sum", ratio=1 / 16)),
    ("LOS905", "cleared-too-late", lambda run: run.put("step", grads="none", zeroed_after_backward=True)),
    ("LOS905", "first-step", lambda run: run.put("step", lambda e: e["n"] == 1, grads="zero")),
    ("LOS906", "clipped", clipped),
    ("LOS906", "divided", lambda run: run.put("backward", chain=["DivBackward0", "loss"])),
    (
        "LOS907",
        "equal",
        lambda run: change_inputs(run.put("loss", fn="mse_loss"), shape=[16, 1]).put(
            "loss", target={"shape": [16, 1], "float": True}
        ),
    ),
    ("LOS908", "finite", nothing),
    ("LOS909", "one-class-batch", lambda run: change_inputs(run, min=0.0, max=1.0, columns=True, simplex=True)),
    ("LOS911", "a-few-unused", lambda run: change_inputs(run, shape=[16, 12])),
    ("LOS912", "either-sign", lambda run: change_inputs(run, zeros=0.4)),
    ("OPT701", "frozen", lambda run: change_rows(run, "stem", opts=[], trainable=False, graded=False, changed=False)),
    ("OPT701", "unused", lambda run: change_rows(run, "stem", opts=[], graded=False, changed=False)),
    ("OPT702", "none", nothing),
    (
        "OPT703",
        "some",
        lambda run: change_rows(run.put("held", frozen=1), "norm", trainable=False, was_trainable=False),
    ),
    (
        "OPT704",
        "one-after-the-other",
        lambda run: change_rows(second_optimizer(run), opts=[0, 1]).put("step", lambda e: e["n"] > 12, opt=1),
    ),
    ("OPT705", "warmup-from-zero", lambda run: rates(run, 0.0, 0.05, 0.1, 0.0)),
    ("OPT706", "adversarial", lambda run: change_group(run.put("optimizer", **ADAM), betas=[0.5, 0.999])),
    ("OPT706", "usual", lambda run: change_group(run, momentum=0.9)),
    ("OPT708", "all-vectors", lambda run: two_groups(run, decayed_vectors=0, spared=5)),
    ("OPT709", "small", lambda run: change_group(run.put("optimizer", **ADAM), weight_decay=1e-4)),
    ("OPT709", "adamw", lambda run: change_group(run.put("optimizer", cls="AdamW"), weight_decay=0.05)),
    ("OPT710", "still", lambda run: change_rows(run, "stem", trainable=False, was_trainable=False, changed=False)),
    ("OPT710", "average", lambda run: change_rows(run, "stem", trainable=False, moved_frozen=True, opts=[])),
    (
        "OPT711",
        "eval-mode",
        lambda run: change_rows(run, "norm", trainable=False, was_trainable=False).put(
            "params", buffers=[["norm.running_mean", False]]
        ),
    ),
    ("OPT712", "large-first-step", lambda run: run.put("step", lambda e: e["n"] == 1, ratio=2.0)),
    ("LRS819", "moves", nothing),
    ("LRS819", "start-of-a-long-cosine", lambda run: rates(run, 0.1, 0.1 - 1e-9, 0.1 - 4e-9, 0.1 - 9e-9)),
    (
        "LRS819",
        "waits-for-a-milestone",
        lambda run: rates(change_scheduler(run, "MultiStepLR", milestones=[30]), 0.1, 0.1, 0.1, 0.1),
    ),
    ("LRS801", "inside-another", lambda run: run.more("scheduler_unused", cls="StepLR", opt=None)),
    ("LRS802", "half-again", lambda run: change_scheduler(run, "CosineAnnealingLR", T_max=5)),
    ("LRS802", "restarts", lambda run: change_scheduler(run, "CosineAnnealingWarmRestarts", T_0=1)),
    ("LRS803", "per-epoch", lambda run: change_scheduler(run, "ExponentialLR", gamma=0.7)),
    ("LRS803", "slow-per-batch", lambda run: per_batch(change_scheduler(run, "ExponentialLR", gamma=0.99))),
    ("LRS804", "own", nothing),
    (
        "LRS805",
        "max-of-accuracy",
        lambda run: metric_given(change_scheduler(run, "ReduceLROnPlateau", mode="max"), "val_acc"),
    ),
    (
        "LRS805",
        "min-of-loss",
        lambda run: metric_given(change_scheduler(run, "ReduceLROnPlateau", mode="min"), "val_loss"),
    ),
    (
        "LRS806",
        "resumed",
        lambda run: run.before("mode", "sched", lambda e: e is run.events[9], id=0, given=[], lrs=[0.1], epoch=0).more(
            "scheduler_loaded", last_epoch=3, step=0, loc="train.py:22"
        ),
    ),
    ("LRS807", "warmup", lambda run: rates(run, 0.001, 0.1, 0.05, 0.01)),
    ("LRS807", "restarts", lambda run: rates(change_scheduler(run, "CyclicLR"), 0.1, 0.01, 0.1, 0.01)),
    (
        "LRS809",
        "metric",
        lambda run: metric_given(change_scheduler(run, "ReduceLROnPlateau", mode="min"), "val_loss"),
    ),
    ("LRS810", "zero-at-the-end", lambda run: rates(run, 0.1, 0.05, 0.01, 0.0)),
    ("TRN403", "one-step-of-many", lambda run: run.put("step", lambda e: e["n"] == 9, cleared=False)),
    (
        "OPT722",
        "transformer",
        lambda run: change_group(run, weight_decay=0.3, lr=3e-3).put("optimizer", cls="AdamW"),
    ),
    ("OPT722", "strong-for-sgd", lambda run: change_group(run, weight_decay=0.005)),
    ("TRN403", "accumulated", lambda run: accumulated(run, 2, 0.5)),
    ("TRN404", "zeroed-after", lambda run: run.put("step", zeroed_after_backward=True)),
    ("TRN405", "replaced", lambda run: second_optimizer(run, graded=0)),
    (
        "TRN406",
        "gradients-by-hand",
        lambda run: run.put("step", backwards=0).more("grad_call", step=1, loc="train.py:35"),
    ),
    ("TRN406", "closure", lambda run: run.put("step", backwards=0, closure=True)),
    ("GRD306", "all-used", nothing),
    ("TRN407", "one-layer", lambda run: run.put("pass", trained, norms=0.0)),
    ("TRN407", "nothing-to-switch", lambda run: run.put("pass", training=False, norms=-1, drops=-1)),
    ("TRN408", "in-order", clipped),
    ("TRN409", "often", lambda run: clipped(run, norm=12.0)),
    ("TRN410", "divided", lambda run: accumulated(run, 2, 0.5)),
    ("TRN411", "even", lambda run: accumulated(run, 2, 0.5)),
    ("TRN411", "window-after-the-last-batch", stepped_at_the_end),
    ("TRN411", "cut-by-the-time-lapse", lambda run: left_over(run, 400)),
    (
        "TRN412",
        "counted-in-steps",
        lambda run: run.put("iter_end", lambda e: e["iteration"] == 7, exhausted=False, batches=3),
    ),
    (
        "TRN414",
        "skipped-by-the-scaler",
        lambda run: scaled(run, "scale", "step", "update").put("step", lambda e: e["n"] == 7, grads="nonfinite"),
    ),
    ("TRN415", "falls", nothing),
    ("TRN415", "mixed-images", lambda run: run.put("backward", value=2.3).more("targets", how="sum")),
    ("TRN416", "none", nothing),
    ("GRD305", "bias-of-a-trained-layer", lambda run: change_rows(run, "head.bias", graded=False, changed=False)),
    (
        "GRD305",
        "switched-off",
        lambda run: change_rows(run, "head", graded=False, changed=False).add(
            "source",
            path="net.py",
            text="def forward(self, x):\n    return self.head(x) if self.config.headed else x\n",
        ),
    ),
    ("GRD305", "thawed-late", lambda run: change_rows(run, "head", was_trainable=False, graded=False, looks=1)),
    ("GRD305", "frozen", lambda run: change_rows(run, "head", trainable=False, was_trainable=False, graded=False)),
    ("DAT221", "new-order", lambda run: without_loaders(run, lambda e: str(e["step"]))),
    (
        "DAT221",
        "batches-of-one-class",
        lambda run: without_loaders(run, lambda e: str(e["step"])).put("pass", labels=lambda e: str(e["step"] % 3)),
    ),
    (
        "LRS806",
        "told-where-it-is",
        lambda run: run.before("mode", "sched", lambda e: e is run.events[9], id=0, given=[0.0], lrs=[0.1], epoch=0),
    ),
    ("CKP011", "saved-at-once", nothing),
    ("CKP011", "deep-copy", lambda run: weights_loaded(run, aliased=0, made_at=6, step=24, strict=True)),
    ("CKP012", "new-head", lambda run: weights_loaded(run, matched=7, missing=["head.weight", "head.bias"])),
    ("CKP013", "plain", nothing),
    ("CKP014", "goes-on", resumed),
    ("CKP015", "goes-on", resumed),
    (
        "CKP016",
        "says-so",
        lambda run: run.put("saved_file", safe=False, problem="x").more(
            "source", path="a.py", text="torch.load(p, weights_only=False)"
        ),
    ),
    ("CKP019", "new-head", lambda run: run.more("loaded_then", cls="Net", tensors=9, changed=2, first=["head.weight"])),
    (
        "EVL601",
        "makes-what-another-model-trains-on",
        lambda run: run.put("pass", evaluated, training=True, norms=1.0, drops=1.0, feeds=True),
    ),
    ("EVL601", "no-norm-nor-dropout", lambda run: run.put("pass", evaluated, training=True, norms=-1, drops=-1)),
    (
        "EVL601",
        "statistics-renewed-over-the-training-data",
        lambda run: renewed(run),
    ),
    (
        "EVL602",
        "one-pass",
        lambda run: run.put("pass", lambda e: e["step"] == 6 and not e["trained"] and e["n"] == 8, learned=True),
    ),
    ("EVL603", "equal-batches", lambda run: equal_batches(run)),
    (
        "EVL604",
        "percentages",
        lambda run: change_values(run, lambda ps: {"val_acc": 100 * sum(p["correct"] for p in ps) / 40}),
    ),
    ("EVL604", "another-metric", lambda run: change_values(run, lambda ps: {"val_f1": 0.1234, "val_loss": 7.7})),
    (
        "EVL605",
        "a-look-at-one-batch",
        lambda run: run.put("iter_end", lambda e: e["iteration"] == 2, exhausted=False, batches=1),
    ),
    (
        "EVL610",
        "best",
        lambda run: best_when(evaluations_up_and_down(run, UP_AND_DOWN), lambda epoch: epoch in (0, 2, 4, 6)),
    ),
]
# Notes: for information, and never counted.
NOTES: list[tuple[str, Change]] = [
    ("REP022", lambda run: run.put("flags", deterministic=True)),
    ("EVL607", lambda run: run.put("pass", evaluated, grad=True)),
    ("EVL609", lambda run: run.drop("pass", where=evaluated)),
]


def renewed(run: Run) -> Run:
    """After the evaluations, passes in train mode over the loader that is trained on."""
    run.more("iter_begin", loader=0, epoch=9, iteration=99, loc="train.py:60")
    last = next(e for e in reversed(run.events) if e["kind"] == "pass" and e["trained"])
    for _ in range(20):
        run.more(**{**last, "trained": False, "grad": False, "iteration": 99})
    counts = {"batches": 6, "forwards": 6, "backwards": 0, "steps": 0}
    return run.more("iter_end", loader=0, iteration=99, exhausted=True, limit=6, length=6, **counts)


def equal_batches(run: Run) -> Run:
    run.put("pass", evaluated, n=16, shape=[16, 10])
    return change_values(run, lambda passes: {"val_loss": sum(p["losses"][0] for p in passes) / 3})


EPOCHS = {"LRS807": 4, "TRN415": 20, "EVL610": 7}


def checks(code: str, change: Change) -> list[Check]:
    run = Run(EPOCHS.get(code, 4))
    change(run)
    return list(_apply(all_rules()[code], run.record()))


def codes_in_modules() -> set[str]:
    return {
        code
        for code, rule in all_rules().items()
        if rule.subject is Subject.RUN and rule.function.__module__.rpartition(".")[2] in MODULES
    }


@pytest.mark.parametrize(("code", "name", "change"), PLANTED, ids=[f"{c}-{n}" for c, n, _ in PLANTED])
def test_a_planted_bug_is_found(code: str, name: str, change: Change):
    found = checks(code, change)
    assert any(check.status in BAD for check in found), found
    assert all(check.message and "Error" not in check.message[:20] for check in found)
    assert all("internal error" not in check.message for check in found)


@pytest.mark.parametrize(("code", "name", "change"), HEALTHY, ids=[f"{c}-{n}" for c, n, _ in HEALTHY])
def test_a_healthy_look_alike_passes(code: str, name: str, change: Change):
    found = checks(code, change)
    assert not [check for check in found if check.status in BAD], found


@pytest.mark.parametrize(("code", "change"), NOTES, ids=[code for code, _ in NOTES])
def test_a_note_is_told_and_never_counted(code: str, change: Change):
    assert [check.status for check in checks(code, change)] == [Status.NOTE]


def test_what_could_not_run_has_not_passed_whatever_was_selected():
    for made in (crash(Run()), crash(untrained(Run()))):
        assert judge(made.record(), ["DAT"]).exit_code
    assert not judge(Run().record(), ["LRS"]).exit_code
    assert not judge(crash(Run()).record(), ["LRS"], ["RUN"]).exit_code


def test_a_lack_of_time_is_told():
    checks = [{"code": code, "name": "x", "status": "skip", "message": "no time was left for it"} for code in NO_TIME]
    report = judge(Run().more("probe", name="model", result={"checks": checks}).record())
    assert "2 checks not made for lack of time; --full gives it more" in report.notes
    assert not any("lack of time" in note for note in judge(Run().record()).notes)


def test_a_healthy_run_passes_every_rule():
    report = judge(Run().record())
    assert not report.of(*BAD), report.of(*BAD)
    assert report.exit_code == 0


def test_every_rule_has_a_planted_bug():
    planted = {code for code, _, _ in PLANTED} | {code for code, _ in NOTES}
    assert codes_in_modules() <= planted


def test_every_rule_has_a_healthy_look_alike():
    """A run that is healthy through and through is one for all of them; a few need nothing closer."""
    close = {code for code, _, _ in HEALTHY}
    assert codes_in_modules() - close <= {"RUN072", "RUN073", "RUN075", "TRN413", "EVL607", "EVL609"}


def test_an_empty_record_is_no_pass():
    report = judge(Record([]))
    assert report.exit_code == 2
    assert not [check for check in report.checks if "internal error" in check.message]


@pytest.mark.parametrize(("made_by", "status"), [(1, Status.SKIP), (FORMAT, Status.ERROR)])
def test_what_an_old_record_does_not_hold_is_skipped(made_by: int, status: Status):
    run = Run().put("run", format=made_by)
    for event in run.events:
        event.pop("cleared", None)
    found = [check for check in judge(run.record()).checks if check.code == "TRN403"]
    assert [check.status for check in found] == [status]
