"""TRN and GRD: what a training loop does, step by step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from statistics import mean, median

from verify.report import Finding, Status, plural, shortlist
from verify.rules import Subject, rule
from verify.rules.switches import optional_layers, switched_off, trees_of
from verify.trace.record import Event, Iteration, NotSeenError, Record

# A mistake in the order of calls happens at every step; a share this large leaves room for special first steps.
MOST, SOME = 0.5, 0.2
FEW_STEPS = 3
CLIP_RATIO = 50.0
LONG_RUN, NO_PROGRESS, WORSE = 100, 0.98, 3.0
THAWED_LOOKS = 3  # at the gradients of a parameter since it was unfrozen


def _main_steps(record: Record, least: int = FEW_STEPS) -> list[tuple[int, list[Event]]]:
    """(optimizer, its steps without a closure) for each optimizer with enough of them."""
    record.need_training()
    found = []
    for opt, steps in record.steps_of.items():
        plain = [s for s in steps if not s["closure"]]
        if len(plain) >= least:
            found.append((opt, plain))
    if not found:
        raise NotSeenError("too few steps, or steps with a closure, which have an order of their own")
    return found


@rule("TRN403", subject=Subject.RUN)
def gradients_pile_up(record: Record) -> Iterator[Finding]:
    """Gradients are not set to zero after each step.

    Why it matters: each step then follows the sum of all gradients since the start; the effective learning rate grows
    and the loss ends high or explodes.
    Found by: the gradients themselves before each backward pass, and calls of `zero_grad`, between two steps.
    Not an error: accumulation over some batches, `p.grad = None`, zeroing after the step instead of before.

    Wrong: `loss.backward(); optimizer.step()`
    Right: `optimizer.zero_grad(); loss.backward(); optimizer.step()`
    """
    for _, steps in _main_steps(record):
        later = [s for s in steps[1:] if s["backwards"]]
        piled = [s for s in later if not s["cleared"]]
        often = len(piled) > MOST * len(later) or (len(piled) > SOME * len(later) and len(piled) >= 2 * FEW_STEPS)
        if len(piled) >= FEW_STEPS - 1 and often:
            yield Finding(
                measured=f"{len(piled)} of {len(later)} steps on top of the gradients of the step before",
                expected="0",
                message="gradients of all earlier batches are still there when a new batch is added",
                location=piled[0]["loc"],
                hint="call optimizer.zero_grad() once a step, before backward or after step",
            )


@rule("TRN404", subject=Subject.RUN)
def gradients_cleared_before_step(record: Record) -> Iterator[Finding]:
    """Gradients are set to zero between the backward pass and the step.

    Why it matters: the step has nothing to follow; only weight decay and momentum still move the weights.
    Found by: `zero_grad` after the last backward pass before a step, with all gradients zero at that step.
    Not an error: zeroing after the step.

    Wrong: `loss.backward(); optimizer.zero_grad(); optimizer.step()`
    Right: `optimizer.zero_grad(); loss.backward(); optimizer.step()`
    """
    for _, steps in _main_steps(record):
        partly = [s for s in steps[1:] if s["backwards"] >= 2 and s["backwards_since_clear"] == 1 and not s["nested"]]
        whole = [s for s in partly if max(s["batches"], s["passes"]) >= s["backwards"]]
        several = [s for s in steps[1:] if s["backwards"] >= 2]
        often = len(whole) >= FEW_STEPS and len(whole) > MOST * len(several)
        if often and len(record.steps_of) == 1 and not _is_two_step(record):
            yield Finding(
                measured=f"{whole[0]['backwards']} backward passes a step, the gradient of the last one left",
                expected="the sum of all",
                message="zero_grad is called for every batch although a step follows only after several",
                location=whole[0]["zeroed_at"] or whole[0]["loc"],
                hint="zero_grad once a step, not once a batch",
            )
            return
        empty = [s for s in steps if s["backwards"] and s["zeroed_after_backward"] and s["grads"] in ("none", "zero")]
        if len(empty) > MOST * len(steps):
            yield Finding(
                measured=f"all gradients zero at {len(empty)} of {len(steps)} steps",
                expected="gradients of the last backward pass",
                message="zero_grad throws away what backward has just computed",
                location=empty[0]["zeroed_at"] or empty[0]["loc"],
                hint="move zero_grad before backward, or after step",
            )


def _is_two_step(record: Record) -> bool:
    """Whether each batch is passed through the model twice, as sharpness-aware minimisation does."""
    return any(e.counts["forwards"] >= 2 * e.counts["batches"] > 0 for e in record.epochs)


@rule("TRN405", subject=Subject.RUN)
def optimizer_never_steps(record: Record) -> Iterator[Finding]:
    """Gradients are computed and an optimizer never makes a step.

    Why it matters: nothing is learned, however long it runs.
    Found by: backward passes that reach the optimizer's parameters, no call of its `step`, and parameters that are bit
    for bit what they were.
    Not an error: updates written by hand; an optimizer that another one has replaced.

    Wrong: `loss.backward()` and no `optimizer.step()`
    Right: `loss.backward(); optimizer.step()`
    """
    backwards = record.of("backward")
    if len(backwards) < FEW_STEPS:
        raise NotSeenError("too few backward passes were seen")
    others = {opt for opt, steps in record.steps_of.items() if steps}
    tables = [row for table in record.of("params") for row in table["rows"]]
    for held in record.of("held"):
        opt = held["opt"]
        if held["steps"] or not held["tensors"] or held["unchanged"] < held["tensors"]:
            continue
        shared = any(opt in row["opts"] and others & set(row["opts"]) for row in tables)
        if shared or (others and not held["graded"]):
            continue
        yield Finding(
            measured=f"{len(backwards)} backward passes and no step",
            expected="steps",
            message=f"{record.optimizers[opt]['cls']} holds {plural(held['tensors'], 'tensor')}, none of which changed",
            location=backwards[0]["loc"],
            hint="call optimizer.step() after loss.backward()",
        )


@rule("TRN406", subject=Subject.RUN)
def step_without_backward(record: Record) -> Iterator[Finding]:
    """The optimizer steps without new gradients.

    Why it matters: the step repeats an old gradient, or does nothing; often the loss was computed under `no_grad`, or
    `step` is called twice.
    Found by: steps with no backward pass since the step before.
    Not an error: steps with a closure; gradients from `torch.autograd.grad` that are set by hand.
    """
    if record.of("grad_call"):
        raise NotSeenError("gradients are computed with torch.autograd.grad and set by hand")
    for _, steps in _main_steps(record):
        later = steps[1:]
        idle = [s for s in later if not s["backwards"]]
        if idle and len(idle) >= 0.3 * len(later):
            yield Finding(
                measured=f"{len(idle)} of {len(later)} steps",
                expected="a backward pass before each",
                message="the optimizer steps although no gradient was computed since its last step",
                location=idle[0]["loc"],
                hint="one backward pass and one step a batch; is the loss computed with gradients enabled?",
            )


@rule("TRN407", subject=Subject.RUN)
def train_mode_lost(record: Record) -> Iterator[Finding]:
    """The model is trained in eval mode.

    Why it matters: dropout is off and batch norm no longer follows the data, from the first validation on.
    Found by: the `training` flag of the model, its batch norms and dropouts at every forward pass that is trained on.
    Not an error: single layers kept in eval mode on purpose. A model that is in eval mode from its first step is a
    warning, because that may be meant.

    Wrong: `model.train()` once before the loop over epochs, and `model.eval()` inside
    Right: `model.train()` at the start of every epoch
    """
    record.need_training()
    _need_training_after_evaluation(record)
    for model in sorted(record.trained_models):
        passes = [p for p in record.of("pass", "skipped_pass") if _is_training(record, p) and p["model"] == model]
        matters = [p for p in passes if p["norms"] >= 0 or p["drops"] >= 0]
        off = [p for p in matters if not p["training"] and p["norms"] <= 0 and p["drops"] <= 0]
        if len(matters) < FEW_STEPS or len(off) < 2:
            continue
        from_start = not matters[0]["training"]
        if from_start and len(off) == len(matters):
            yield Finding(
                status=Status.WARN,
                measured=f"eval mode at all {len(matters)} training passes",
                expected="train mode",
                message="dropout and batch norm are never in train mode, which is right only when both are frozen",
                location=off[0]["loc"],
                hint="model.train() before training",
            )
        elif len(off) >= 0.3 * len(matters):
            modes = [e for e in record.of("mode") if not e["training"] and e["model"] == model]
            at = f"; eval() was last called at {modes[0]['loc']}" if modes else ""
            yield Finding(
                measured=f"eval mode at {len(off)} of {len(matters)} training passes, train mode at first",
                expected="train mode",
                message=f"the model stays in eval mode after an evaluation{at}",
                location=off[0]["loc"],
                hint="model.train() at the start of every epoch",
            )


def _is_training(record: Record, one: Event) -> bool:
    """Whether a pass is trained on, or would have been if it were not left out."""
    return one["loader"] in record.train_loaders if one["kind"] == "skipped_pass" else bool(one["trained"])


def _need_training_after_evaluation(record: Record) -> None:
    first = record.evaluations[0].begin if record.evaluations else None
    ended_early = any(e["why"] == "time" for e in record.of("ended")) or record.run["timed_out"]
    if first is None:
        if ended_early:
            raise NotSeenError("time was up before the first evaluation")
    elif not any(e["i"] > first and _is_training(record, e) for e in record.of("pass", "skipped_pass")):
        raise NotSeenError("no training after an evaluation was seen")


@rule("TRN408", subject=Subject.RUN)
def clip_misplaced(record: Record) -> Iterator[Finding]:
    """Gradients are clipped where there are none.

    Why it matters: clipping before the backward pass, or after the step, limits nothing.
    Found by: calls of `clip_grad_norm_` and `clip_grad_value_` with no backward pass since the last step.
    Not an error: measuring the norm of gradients of other parameters.

    Wrong: `clip_grad_norm_(model.parameters(), 1.0); loss.backward()`
    Right: `loss.backward(); clip_grad_norm_(model.parameters(), 1.0); optimizer.step()`
    """
    clips = [c for c in record.of("clip") if c["backwards"] is not None]
    if not record.of("clip"):
        raise NotSeenError("gradients are not clipped")
    windows: dict[int, list[Event]] = {}
    for clip in clips:
        windows.setdefault(clip["step"], []).append(clip)
    twice = [w for w in windows.values() if len(w) >= 2 and len({c["backwards"] for c in w}) >= 2]
    if len(twice) >= FEW_STEPS and len(record.steps_of) == 1:
        yield Finding(
            status=Status.WARN,
            measured=f"{len(twice[0])} times a step, between the backward passes",
            expected="once, before the step",
            message="accumulated gradients are clipped after each batch, so later batches weigh more than earlier ones",
            location=twice[0][0]["loc"],
            hint="clip once, after the last backward pass before the step",
        )
        return
    early = [c for c in clips if c["backwards"] == 0]
    if len(early) >= 2 and len(early) > MOST * len(clips):
        yield Finding(
            measured=f"{len(early)} of {len(clips)} calls without a backward pass before them",
            expected="0",
            message="clipping happens before backward or after the step, so it has no effect",
            location=early[0]["loc"],
            hint="backward, then clip, then step",
        )


@rule("TRN409", severity=Status.WARN, subject=Subject.RUN)
def clip_throttles(record: Record) -> Iterator[Finding]:
    """Clipping cuts every gradient to a small fraction.

    Why it matters: the step is then the limit times the learning rate whatever the gradient is; training crawls.
    Found by: the median of gradient norm over limit, above 50.
    Not an error: a limit that is reached often, as in most recipes of transformers.
    """
    clips = [c for c in record.of("clip") if c["fn"] == "clip_grad_norm_" and isinstance(c["norm"], float | int)]
    ratios = [c["norm"] / c["limit"] for c in clips if c["limit"] > 0]
    if any(c["limit"] == 0 for c in clips):
        yield Finding(
            status=Status.FAIL,
            measured="limit 0",
            expected="a limit above 0",
            message="clipping to a norm of 0 sets every gradient to zero",
            location=clips[0]["loc"],
            hint="1.0 is a common limit; to not clip, leave the call out or use inf",
        )
    elif len(ratios) >= FEW_STEPS and median(ratios) > CLIP_RATIO:
        yield Finding(
            measured=f"the norm is {median(ratios):,.0f} times the limit of {clips[0]['limit']:g} (median)",
            expected=f"at most {CLIP_RATIO:g} times",
            message="every gradient is scaled down to next to nothing",
            location=clips[0]["loc"],
            hint="raise the limit; the norms seen here say how far",
        )


def _accumulation(record: Record) -> tuple[int, list[Event]]:
    """(batches a step, steps) of the main optimizer."""
    record.need_training(FEW_STEPS)
    steps = [s for s in record.steps_of[record.main_optimizer or 0] if not s["closure"]]
    windows = Counter(s["backwards_since_clear"] for s in steps)
    size = windows.most_common(1)[0][0] if windows else 1
    whole = [s for s in steps[1:] if s["backwards_since_clear"] == size]
    # Several losses of one batch, as those of a discriminator, are called in several places.
    one_place = len({b["loc"] for b in record.of("backward")}) == 1
    if size < 2 or any(max(s["batches"], one_place * s["passes"]) < size for s in whole):
        raise NotSeenError("gradients are not accumulated over batches")
    return size, steps


@rule("TRN410", severity=Status.WARN, subject=Subject.RUN)
def accumulated_loss_not_divided(record: Record) -> Iterator[Finding]:
    """The loss of accumulated batches is added up, not averaged.

    Why it matters: the gradient is k times as large as that of one large batch, which is a learning rate k times as
    large with SGD, and another clipping limit with any optimizer.
    Found by: k backward passes a step whose starting value equals the mean loss of their batch.
    Not an error: a loss divided by k; gradients divided afterwards are not seen, hence a warning.

    Wrong: `loss.backward()` on each of k batches
    Right: `(loss / k).backward()`
    """
    size, _ = _accumulation(record)
    factors = [e["factor"] for e in record.of("scaler") if e.get("factor")]
    scale = factors[0] if factors else 1.0
    ratios = [b["ratio"] / scale for b in record.of("backward")[: max(20, size)] if isinstance(b["ratio"], float | int)]
    if any(b["reduction"] == "sum" for b in record.of("backward")):
        raise NotSeenError("the loss is a sum over samples")
    if len(ratios) >= size and all(abs(r - 1) < 1e-3 for r in ratios):
        yield Finding(
            measured=f"{size} backward passes a step, each from the whole loss",
            expected=f"loss / {size}",
            message=f"the accumulated gradient is {size} times that of one batch of the same samples",
            location=record.of("backward")[0]["loc"],
            hint=f"(loss / {size}).backward()",
        )


@rule("TRN411", severity=Status.WARN, subject=Subject.RUN)
def accumulation_tail_dropped(record: Record) -> Iterator[Finding]:
    """The last, incomplete window of accumulated batches makes no step.

    Why it matters: those samples are thrown away each epoch, or their gradients are added to the next epoch's first
    window, which is then larger than the others.
    Found by: batches left over at the end of an epoch with no step after them.
    Not an error: an epoch whose batches divide evenly into windows; a last step when the loader is at its end.

    Wrong: `if (i + 1) % k == 0: optimizer.step()`
    Right: `if (i + 1) % k == 0 or i + 1 == len(loader): optimizer.step()`
    """
    size, steps = _accumulation(record)
    for epoch in record.epochs:
        left = epoch.counts["batches"] % size
        whole = epoch.length
        if not left or not epoch.exhausted or epoch.counts["steps"] != epoch.counts["batches"] // size:
            continue
        if (whole is not None and whole % size == 0) or _steps_after(record, epoch, steps):
            continue
        lost = whole % size if whole is not None else left
        yield Finding(
            measured=f"{plural(lost, 'batch').replace('batchs', 'batches')} of each epoch after the last step",
            expected="0",
            message=f"with {size} batches a step, the rest of an epoch makes no step of its own",
            location=steps[0]["loc"],
            hint="also step when i + 1 == len(loader)",
        )
        return


def _steps_after(record: Record, epoch: Iteration, steps: list[Event]) -> bool:
    """Whether a step follows the end of a pass over the loader, before anything else is iterated.

    A generator that hands out windows of batches has asked for one too many when the last window is trained on.
    """
    following = min((one.begin for one in record.iterations if one.begin > epoch.end), default=len(record.events))
    return any(epoch.end < step["i"] < following for step in steps)


@rule("TRN412", severity=Status.WARN, subject=Subject.RUN)
def epoch_cut_short(record: Record) -> Iterator[Finding]:
    """Every epoch stops before its last batch.

    Why it matters: a forgotten `break`, or a wrong number of steps, trains on a small part of the data.
    Found by: passes over the training loader that end while there are batches left, in every epoch.
    Not an error: a loop that is counted in steps and goes through the loader again and again.
    """
    epochs = [e for e in record.epochs if e.number != record.epochs[-1].number or record.ran_to_the_end]
    if len(epochs) < 2:
        raise NotSeenError("fewer than two epochs over a loader were seen")
    short = [e for e in epochs if not e.exhausted and e.counts["batches"] < min(e.limit, e.length or e.limit)]
    if len(short) == len(epochs):
        yield Finding(
            measured=f"{short[0].counts['batches']} of the batches in each of {len(short)} epochs",
            expected="all",
            message="the loop over the training loader is left early in every epoch",
            location=short[0].loc,
            hint="a break from debugging? a limit on steps that is too small?",
        )


@rule("TRN413", severity=Status.WARN, subject=Subject.RUN)
def loss_graph_kept(record: Record) -> Iterator[Finding]:
    """A running sum of losses keeps the graphs of all its batches.

    Why it matters: memory grows with every batch until the process is killed.
    Found by: variables of the script that hold a sum, or a list, of losses with their history.
    Not an error: a sum over a few losses that backward is then called on.

    Wrong: `total += loss`
    Right: `total += loss.item()`, or `loss.detach()`
    """
    for event in record.of("graph_kept")[:1]:
        yield Finding(
            measured=f"{event['name']} holds the graphs of {event['depth']} or more batches",
            expected="a number",
            message="the graph of every batch stays in memory",
            location=event["loc"],
            hint=f"{event['name']} += loss.item()",
        )


@rule("TRN414", subject=Subject.RUN)
def loss_not_finite(record: Record) -> Iterator[Finding]:
    """The training loss becomes nan or infinite.

    Why it matters: every weight is nan after the next step.
    Found by: the value that each backward pass starts from, and the gradients at each step.
    Not an error: nothing.
    """
    record.need_training()
    for event in record.of("backward"):
        if isinstance(event["value"], str):
            yield Finding(
                measured=f"{event['value']} at step {event['step'] + 1}",
                expected="finite",
                message="the loss is not finite",
                location=event["loc"],
                hint="a lower learning rate, clipping, no log or square root of 0, inputs without nan",
            )
            return
    skipped = any(c["call"] == "step" and c["enabled"] for c in record.of("scaler"))
    for step in record.steps:
        if step["grads"] == "nonfinite" and not skipped:
            yield Finding(
                measured=f"gradients at step {step['n']}",
                expected="finite",
                message="a gradient is not finite and the step is made all the same",
                location=step["loc"],
                hint="clip, lower the learning rate, and skip steps whose gradient norm is not finite",
            )
            return


@rule("TRN415", severity=Status.WARN, subject=Subject.RUN)
def training_does_not_learn(record: Record) -> Iterator[Finding]:
    """The training loss does not fall.

    Why it matters: something is wrong that no other rule has a name for: data, labels, learning rate, initialisation.
    Found by: the losses of the first and of the last tenth of at least 100 steps, while the learning rate was not in
    its warmup.
    Not an error: short runs, and losses that are not meant to fall, as those of two networks that play against each
    other; mixed images, whose loss stays high and depends on how they were mixed.
    """
    if any(e["how"] != "none" for e in record.of("targets")):
        raise NotSeenError("images are mixed, and their loss stays high")
    losses = [b["value"] for b in record.of("backward") if isinstance(b["value"], int | float)]
    if len(losses) < LONG_RUN:
        raise NotSeenError(f"fewer than {LONG_RUN} steps were seen")
    if len([o for o in record.steps_of if len(record.steps_of[o]) >= FEW_STEPS]) > 1:
        raise NotSeenError("several optimizers may work against each other")
    rates = record.learning_rates(record.main_optimizer or 0)
    awake = sum(r >= 0.3 * max(rates) for r in rates) if rates else 0
    if awake < LONG_RUN // 2:
        raise NotSeenError("the learning rate was still small")
    tenth = max(5, len(losses) // 10)
    first, last = mean(losses[:tenth]), mean(losses[-tenth:])
    if first > 0 and last > NO_PROGRESS * first and math.isfinite(last):
        worse = last > WORSE * first
        yield Finding(
            measured=f"{first:.3f} over the first {tenth} steps, {last:.3f} over the last",
            expected="a loss that falls",
            message="the loss grows" if worse else "the loss does not fall",
            location=record.of("backward")[0]["loc"],
            hint="a lower learning rate" if worse else "another learning rate; look at a batch and its labels",
        )


@rule("TRN416", subject=Subject.RUN)
def regularisation_lost(record: Record) -> Iterator[Finding]:
    """Dropout rates change and do not come back.

    Why it matters: an evaluation that sets dropout to 0 by hand leaves it off for the rest of the training.
    Found by: the rates of all dropout layers at every pass in train mode.
    Not an error: a schedule of rates that are not 0, which is a warning.

    Wrong: `for m in model.modules(): m.p = 0`
    Right: `model.eval()`
    """
    for event in record.of("dropout_changed")[:1]:
        off = all(p == 0 for p in event["after"])
        yield Finding(
            status=Status.FAIL if off else Status.WARN,
            measured=f"p = {event['after'][0]:g} in a training pass",
            expected=f"p = {event['before'][0]:g}, as at first",
            message="dropout is off for the rest of the training" if off else "dropout rates change while training",
            location=event["loc"],
            hint="model.eval() switches dropout off, and model.train() on again",
        )


@rule("GRD305", subject=Subject.RUN)
def parameter_never_changes(record: Record) -> Iterator[Finding]:
    """Trainable parameters never get a gradient.

    Why it matters: they keep their random initial values, and pass for trained ones.
    Found by: the gradients of every parameter at several steps of the run, up to its end; of those that are frozen at
    first, at three steps or more after that.
    Not an error: frozen parameters, layers that only a later phase of training uses, layers that an option of the
    model switches off, and biases whose gradient is zero by mathematics, as the last one of a Wasserstein critic.

    Wrong: `with torch.set_grad_enabled(not self.frozen)` in forward, and `requires_grad_(True)` alone to unfreeze
    Right: `self.frozen = False` as well
    """
    record.need_training(5)
    idle = [r for r in record.parameters if r["trainable"] and r["opts"] and not r["graded"]]
    dead = [r for r in idle if r["was_trainable"] or r.get("looks", 0) >= THAWED_LOOKS]
    off = switched_off((r["name"] for r in dead), optional_layers(trees_of(record.sources))) if dead else {}
    dead = [r for r in dead if r["name"] not in off]
    alive = [r for r in record.parameters if r["graded"]]
    trained = {r["name"] for r in alive}
    dead = [
        r for r in dead if not (r["name"].endswith(".bias") and f"{r['name'].removesuffix('bias')}weight" in trained)
    ]
    if dead and alive:
        yield Finding(
            measured=f"{plural(len(dead), 'tensor')} of {len(record.parameters)} without a gradient in all steps",
            expected="0",
            message="they are in the optimizer and are never trained",
            location=shortlist(r["name"] for r in dead),
            hint="is the layer called in forward? is a .detach() or .data on its path?",
        )
    elif dead:
        yield Finding(
            measured="no parameter of the model ever got a gradient",
            expected="gradients",
            message="the loss does not depend on the model",
            location=record.of("backward")[0]["loc"] if record.of("backward") else "",
            hint="is the output detached, or wrapped into a new tensor, before the loss?",
        )


@rule("GRD306", severity=Status.WARN, subject=Subject.RUN)
def part_never_trained(record: Record) -> Iterator[Finding]:
    """A third or a half of a fused weight never gets a gradient.

    Why it matters: one of the projections that the layer computes at once is thrown away: attention that takes the keys
    for the values trains, and is worse.
    Found by: the gradient of the rows of linear layers, in halves and thirds, at several steps of the run: one part is
    zero at all of them, and the others are not.
    Not an error: embeddings and tables of positions, of which only some rows are used.

    Wrong: `q, k, v = self.qkv(x).chunk(3, dim=-1)` and `attention @ k`
    Right: `attention @ v`
    """
    record.need_training(5)
    for event in record.of("dead_part"):
        fused = event["parts"] == 3 and any(word in event["name"] for word in ("qkv", "in_proj", "kqv", "attn"))
        rows = event["rows"] // event["parts"]
        first = event["dead"] * rows
        yield Finding(
            status=Status.FAIL if fused else Status.WARN,
            measured=f"rows {first} to {first + rows - 1} of {event['rows']} without a gradient in all steps",
            expected="every part of the weight is trained",
            message="one of the parts that this layer computes is not used",
            location=event["name"],
            hint="are the parts that it is split into all used, each in its place?",
        )


def _epochs_of(record: Record, field: str) -> list[list[str]]:
    """Prints of the batches that are trained on, from evaluation to evaluation."""
    epochs: list[list[str]] = [[]]
    for event in record.of("pass"):
        if event["trained"] and event.get(field):
            epochs[-1].append(event[field])
        elif not event["trained"] and epochs[-1]:
            epochs.append([])
    return [epoch for epoch in epochs if len(epoch) >= 2]


def _repeats(epochs: list[list[str]]) -> bool:
    """Whether all epochs are the same; the last one may have been cut short."""
    others = epochs[1:-1] or epochs[1:]
    return bool(others) and all(one == epochs[0] for one in others)


@rule("DAT221", severity=Status.WARN, subject=Subject.RUN)
def order_without_loader_repeats(record: Record) -> Iterator[Finding]:
    """A loop without a DataLoader takes its batches in the same order every epoch.

    Why it matters: batches always hold the same samples, which costs accuracy; sorted samples make it forget.
    Found by: the inputs of the batches between two evaluations, or the targets of four batches or more, which repeat
    exactly.
    Not an error: all data in one batch; a new permutation for each epoch.

    Wrong: `for i in range(0, n, batch): x[i : i + batch]`
    Right: `order = torch.randperm(n)` at the start of each epoch, `x[order[i : i + batch]], y[order[i : i + batch]]`
    """
    if record.epochs or record.train_loaders:
        raise NotSeenError("training iterates a DataLoader")
    whole, labels = _epochs_of(record, "inputs"), _epochs_of(record, "labels")
    if len(whole) < 2:
        raise NotSeenError("fewer than two epochs of several batches were seen")
    # Augmented images are new each time; the labels of so many different batches are not the same by chance.
    count = len(whole[0])
    if _repeats(whole):
        what, message = f"the same {count} batches", "the samples are never shuffled anew"
    elif _repeats(labels) and len(set(labels[0])) >= 4:
        what = f"the targets of the {count} batches are the same"
        message = "the targets keep their order: the samples do too, or the inputs alone are shuffled"
    else:
        return
    first = next(e for e in record.of("pass") if e["trained"])
    yield Finding(
        measured=f"{what} in each of {len(whole)} epochs",
        expected="another order every epoch",
        message=message,
        location=first["loc"],
        hint="torch.randperm(n) at the start of each epoch, and the same index for inputs and targets",
    )
