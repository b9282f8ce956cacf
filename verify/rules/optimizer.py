"""OPT: what the optimizer holds and how it is set."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from verify.report import Finding, Status, plural, shortlist
from verify.rules import Subject, rule
from verify.trace.record import Event, NotSeenError, Record

ADAMS = ("Adam", "Adamax", "NAdam", "RAdam")
TINY_RATE = 1e-7
# Size of a step over size of the weights: about 1e-3 is usual, and 1 replaces them.
LARGEST_UPDATE, LARGEST_FIRST, SMALLEST_UPDATE = 1.0, 5.0, 1e-8
LARGE_COUPLED_DECAY = 0.01

# The decay from which it is strong, of the optimizers in which it means the same everywhere.
STRONG_DECAY = {"AdamW": 1.0, "SGD": 0.05}
SHRINKS = 1e-3  # of a weight, a step


def _stepped(record: Record) -> list[Event]:
    """The `optimizer` events of those that stepped."""
    record.need_training()
    return [record.optimizers[opt] for opt in record.steps_of]


@rule("OPT701", subject=Subject.RUN)
def parameters_not_in_optimizer(record: Record) -> Iterator[Finding]:
    """Trainable parameters are in no optimizer.

    Why it matters: gradients are computed for them and thrown away; a part of the model stays random.
    Found by: parameters of the trained model that get gradients, compared by identity with what all optimizers hold.
    Not an error: parameters with `requires_grad=False`, and those that get no gradient.

    Wrong: `SGD(model.head.parameters(), lr=0.1)` with a trainable body
    Right: `SGD(model.parameters(), lr=0.1)`, or `body.requires_grad_(False)` to freeze it and say so
    """
    record.need_training()
    if not record.parameters:
        raise NotSeenError("no module was trained")
    missing = [r for r in record.parameters if r["trainable"] and r["graded"] and not r["opts"] and not r["changed"]]
    held = [r for r in record.parameters if r["opts"]]
    if missing and held:
        yield Finding(
            measured=f"{plural(len(missing), 'tensor')} of {len(record.parameters)} in no optimizer",
            expected="0",
            message="these parameters get gradients and are never updated",
            location=shortlist(r["name"] for r in missing),
            hint=f"pass them to the optimizer (made at {_stepped(record)[0]['loc']}), or freeze them",
        )


@rule("OPT702", subject=Subject.RUN)
def optimizer_holds_foreign_tensors(record: Record) -> Iterator[Finding]:
    """The optimizer holds tensors that no longer belong to the model.

    Why it matters: the layer that replaced them is not trained; the steps go to tensors that nobody uses.
    Found by: tensors of an optimizer that are in none of the modules that ran, and never get a gradient.
    Not an error: parameters outside of modules that do get gradients.

    Wrong: `optimizer = SGD(model.parameters()); model.fc = nn.Linear(512, 10)`
    Right: the new layer first, then the optimizer
    """
    record.need_training()
    for held in record.of("held"):
        if held["steps"] and held["n_foreign"]:
            whole = held["n_foreign"] == held["tensors"]
            yield Finding(
                measured=f"{plural(held['n_foreign'], 'tensor')} of {held['tensors']}, of shapes "
                f"{shortlist(map(str, held['foreign']))}",
                expected="0",
                message="all that the optimizer holds belongs to another model than the one that runs"
                if whole
                else "the optimizer was built before the model was changed",
                location=record.optimizers[held["opt"]]["loc"],
                hint="give it the parameters of the model that is trained: one instance, built once"
                if whole
                else "replace layers, wrap and move the model first; build the optimizer last",
            )


@rule("OPT703", subject=Subject.RUN)
def nothing_trainable(record: Record) -> Iterator[Finding]:
    """Everything that the optimizer holds is frozen.

    Why it matters: the loss goes down by nothing but chance.
    Found by: `requires_grad` of every tensor in the optimizer.
    Not an error: some frozen tensors among others; a teacher that is frozen when it has been trained.
    """
    for held in record.of("held"):
        trained = any(step["grads"] == "ok" for step in record.steps_of.get(held["opt"], []))
        if held["tensors"] and held["frozen"] == held["tensors"] and not trained:
            yield Finding(
                measured=f"{held['frozen']} of {held['tensors']} tensors frozen",
                expected="at least one trainable",
                message="the optimizer has nothing to train",
                location=record.optimizers[held["opt"]]["loc"],
                hint="unfreeze what is to be trained before the optimizer is built",
            )
            return
    never_loaded = {name for e in record.of("weights_loaded") for name in e["missing"]}
    left = [r["name"] for r in record.parameters if r["name"] in never_loaded and not r["trainable"]]
    if left and record.steps:
        yield Finding(
            status=Status.WARN,
            measured=f"{plural(len(left), 'tensor')} frozen that no checkpoint filled",
            expected="new layers are trained",
            message="layers with random weights are frozen",
            location=shortlist(left),
            hint="freeze what was loaded, and train what is new",
        )
        return
    frozen = [r for r in record.parameters if not r["trainable"] and not r["was_trainable"] and r["opts"]]
    numel = sum(math.prod(r["shape"]) for r in record.parameters)
    share = sum(math.prod(r["shape"]) for r in frozen) / max(1, numel)
    loaded = any(e["step"] == 0 for e in record.of("weights_loaded", "load"))
    if share > 0.3 and record.steps and not loaded:
        yield Finding(
            status=Status.WARN,
            measured=f"{plural(len(frozen), 'tensor')} frozen, {share:.0%} of all parameters",
            expected="frozen layers hold weights that were loaded",
            message="most of the model is frozen, and no weights were ever loaded into it",
            location=shortlist(r["name"] for r in frozen),
            hint="unfreeze it, or load what was trained before",
        )


@rule("OPT704", subject=Subject.RUN)
def parameter_updated_twice(record: Record) -> Iterator[Finding]:
    """A parameter is in two optimizers that take turns.

    Why it matters: it moves twice for each gradient, by two rules.
    Found by: parameters held by two optimizers whose steps alternate.
    Not an error: one optimizer after the other, a wrapper around an optimizer, two optimizers with separate parameters.
    """
    record.need_training()
    rows = [r for r in record.parameters if len(set(r["opts"]) & set(record.steps_of)) > 1]
    if not rows:
        return
    pair = sorted(set(rows[0]["opts"]) & set(record.steps_of))[:2]
    turns = [s["opt"] for s in record.steps if s["opt"] in pair]
    changes = sum(a != b for a, b in pairwise(turns))
    if changes >= 4:
        yield Finding(
            measured=f"{plural(len(rows), 'tensor')} in two optimizers whose steps alternate",
            expected="0",
            message="these parameters are updated twice",
            location=shortlist(r["name"] for r in rows),
            hint="give each parameter to one optimizer",
        )


@rule("OPT705", subject=Subject.RUN)
def learning_rate_zero(record: Record) -> Iterator[Finding]:
    """The learning rate is zero, or next to it, in every step.

    Why it matters: nothing moves.
    Found by: the learning rates of all groups at every step.
    Not an error: a warmup that starts at 0, a schedule that ends there, one group at 0 among others, which is a
    warning.
    """
    for optimizer in _stepped(record):
        steps = [e for e in record.of("step") if e["opt"] == optimizer["id"]]
        groups = list(zip(*[s["lrs"] for s in steps], strict=False))
        highest = [max((r for r in rates if isinstance(r, int | float)), default=0.0) for rates in groups]
        if not highest:
            continue
        if max(highest) <= TINY_RATE:
            zero = max(highest) == 0
            yield Finding(
                status=Status.FAIL if zero else Status.WARN,
                measured=f"{max(highest):g} in all {len(steps)} steps",
                expected="above 0",
                message="the learning rate is zero" if zero else "the learning rate is so small that nothing moves",
                location=optimizer["loc"],
                hint="usual values: 1e-3 for Adam, 0.1 for SGD with momentum",
            )
        elif min(highest) == 0 and len(steps) > 2:
            yield Finding(
                status=Status.WARN,
                measured=f"group {highest.index(0)} of {len(highest)} has rate 0 in all steps",
                expected="above 0",
                message="one group of parameters never moves",
                location=optimizer["loc"],
                hint="to freeze it, set requires_grad to False",
            )


@rule("OPT706", severity=Status.WARN, subject=Subject.RUN)
def betas_out_of_order(record: Record) -> Iterator[Finding]:
    """Adam's betas are the wrong way round, or a momentum was mistaken for its complement.

    Why it matters: with the first beta above the second, the step is divided by a noisier average than its own.
    Found by: betas[0] > betas[1]; SGD's momentum between 0 and 0.5.
    Not an error: betas (0.5, 0.999), as in adversarial training.
    """
    for optimizer in _stepped(record):
        for group in optimizer["groups"]:
            betas, momentum = group.get("betas"), group.get("momentum")
            if isinstance(betas, list) and len(betas) >= 2 and betas[0] > betas[1]:
                yield Finding(
                    measured=f"betas {tuple(betas[:2])}",
                    expected="betas[0] <= betas[1], such as (0.9, 0.999)",
                    message="the averages of gradient and squared gradient are swapped",
                    location=optimizer["loc"],
                    hint="betas=(0.9, 0.999)",
                )
                break
            if isinstance(momentum, float) and 0 < momentum < 0.5 and optimizer["cls"] == "SGD":
                yield Finding(
                    measured=f"momentum {momentum:g}",
                    expected="0, or 0.5 and above; 0.9 is usual",
                    message="a momentum this small does next to nothing; was 1 - momentum meant?",
                    location=optimizer["loc"],
                    hint=f"momentum={1 - momentum:g}?",
                )
                break


@rule("OPT708", severity=Status.WARN, subject=Subject.RUN)
def no_decay_group_mismatch(record: Record) -> Iterator[Finding]:
    """The group without weight decay misses parameters that it is for.

    Why it matters: norms and biases are decayed although the code means to spare them; a name that does not match
    matches silently.
    Found by: a group with decay 0 that is empty, or holds vectors alone while the group with decay holds vectors too.
    Not an error: one group for all; groups for body and head; single numbers, as the weights of several losses.

    Wrong: `"LayerNorm" in name` when the layer is called `norm1`
    Right: `p.ndim <= 1`
    References: Loshchilov & Hutter 2019; the habit of sparing vectors is that of most transformer recipes.
    """
    for optimizer in _stepped(record):
        decayed = [g for g in optimizer["groups"] if (g.get("weight_decay") or 0) > 0]
        spared = [g for g in optimizer["groups"] if g.get("weight_decay") == 0]
        if not decayed or not spared:
            continue
        left = sum(g["vectors"] for g in decayed)
        matrices = sum(g["tensors"] - g["vectors"] for g in decayed)
        if left and not matrices:
            yield Finding(
                measured=f"{plural(left, 'vector')} with decay, all matrices without",
                expected="the other way round",
                message="weight decay acts on norms and biases alone",
                location=optimizer["loc"],
                hint="swap the two groups",
            )
            return
        tensors, vectors = sum(g["tensors"] for g in spared), sum(g["vectors"] for g in spared)
        if left and tensors == vectors:
            yield Finding(
                measured=f"{plural(vectors, 'vector')} without decay, {left} with decay",
                expected="all norms and biases without decay",
                message="the group without weight decay does not get every norm and bias",
                location=optimizer["loc"],
                hint="split by p.ndim <= 1 instead of by name",
            )


@rule("OPT709", severity=Status.WARN, subject=Subject.RUN)
def coupled_weight_decay(record: Record) -> Iterator[Finding]:
    """Adam gets a weight decay that is meant for AdamW.

    Why it matters: in Adam the decay is added to the gradient and divided by its size; large values of the decoupled
    kind then regularise little, and unevenly.
    Found by: an Adam without decoupling and `weight_decay` of 0.01 or more.
    Not an error: small values, which are L2 penalties; AdamW.
    References: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    for optimizer in _stepped(record):
        for group in optimizer["groups"]:
            decay = group.get("weight_decay") or 0
            decoupled = bool(group.get("decoupled_weight_decay"))
            if optimizer["cls"] in ADAMS and not decoupled and decay >= LARGE_COUPLED_DECAY:
                yield Finding(
                    measured=f"{optimizer['cls']} with weight_decay {decay:g}",
                    expected=f"AdamW, or at most {LARGE_COUPLED_DECAY / 10:g}",
                    message="a decay of this size is meant for AdamW",
                    location=optimizer["loc"],
                    hint="torch.optim.AdamW with the same arguments",
                )
                break


@rule("OPT712", severity=Status.WARN, subject=Subject.RUN)
def update_size_odd(record: Record) -> Iterator[Finding]:
    """A step is as large as the weights themselves, or far too small to matter.

    Why it matters: steps of the size of the weights undo the initialisation, kill ReLUs and end in noise; steps below
    the precision of float32 change nothing.
    Found by: the norm of the change of a few weight matrices over their norm, at several steps.
    Not an error: large steps on layers that start at zero or close to it, which are left out.
    """
    record.need_training(3)
    ratios = [s["ratio"] for s in record.steps if isinstance(s.get("ratio"), int | float)]
    if len(ratios) < 3:
        raise NotSeenError("the size of too few steps was measured")
    middle, first = median(ratios), max(ratios[:3])
    high = middle > LARGEST_UPDATE or first > LARGEST_FIRST
    if high or 0 < middle < SMALLEST_UPDATE:
        yield Finding(
            measured=f"a step changes the weights by {max(first, middle) if high else middle:.1g} times their norm",
            expected="about 1e-3",
            message="the learning rate is far too high" if high else "the learning rate is far too low",
            location=record.optimizers[record.main_optimizer or 0]["loc"],
            hint="divide it by 10 until the loss falls" if high else "multiply it by 10 until the loss falls",
        )


@rule("OPT722", severity=Status.WARN, subject=Subject.RUN)
def weight_decay_strong(record: Record) -> Iterator[Finding]:
    """Weight decay shrinks the weights faster than training can build them.

    Why it matters: the network underfits, and no learning rate helps; often a digit too many, or the number of another
    optimizer.
    Found by: the settings of the optimizers that step: what a step takes off every weight, its rate times its decay,
    0.1% and more with a decay of 1 and more (decoupled) or of 0.05 and more (SGD).
    Not an error: 0.3 with AdamW, as for vision transformers; 0.005 with SGD; a decay on a group that is not trained.

    Wrong: `AdamW(model.parameters(), lr=3e-3, weight_decay=10)`
    Right: `AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)`
    """
    for optimizer in _stepped(record):
        limit = STRONG_DECAY.get(optimizer["cls"], math.inf)
        for group in optimizer["groups"]:
            decay, rate = group.get("weight_decay") or 0, group.get("lr") or 0
            trained = group.get("frozen", 0) < group.get("tensors", 1)
            if trained and decay >= limit and decay * rate >= SHRINKS:
                yield Finding(
                    measured=f"{optimizer['cls']} with weight_decay {decay:g}, {decay * rate:.1%} a step",
                    expected=f"less than {limit:g}",
                    message="weight decay is far stronger than any usual recipe",
                    location=optimizer["loc"],
                    hint="usual values: 0.01 to 0.3 for AdamW, 1e-4 to 5e-4 for SGD",
                )
                return


@rule("OPT710", subject=Subject.RUN)
def frozen_parameters_move(record: Record) -> Iterator[Finding]:
    """Frozen parameters change.

    Why it matters: the pretrained features drift by weight decay and momentum although no gradient asks for it.
    Found by: parameters with `requires_grad=False` that are not bit for bit what they were when they were frozen.
    Not an error: averages of weights, which no optimizer holds.

    Wrong: freezing after momentum was built up, with gradients set to zero instead of None
    Right: leave frozen parameters out of the optimizer, or set their gradients to None
    """
    record.need_training()
    moved = [r for r in record.parameters if r["moved_frozen"] and r["opts"]]
    if moved:
        yield Finding(
            measured=f"{plural(len(moved), 'frozen tensor')} changed",
            expected="0",
            message="the optimizer moves parameters that are frozen",
            location=shortlist(r["name"] for r in moved),
            hint="give the optimizer only what is trained; weight decay and momentum need no gradient",
        )


@rule("OPT711", severity=Status.WARN, subject=Subject.RUN)
def frozen_statistics_drift(record: Record) -> Iterator[Finding]:
    """Batch norms whose weights are frozen keep updating their running statistics.

    Why it matters: the frozen features change all the same, and differ between training and evaluation.
    Found by: running statistics that changed beside weights that are frozen from the start, or for the first steps of
    an optimizer that trains other layers of the model.
    Not an error: frozen batch norms in eval mode; networks that are frozen for every second step alone.

    Wrong: `requires_grad_(False)` alone
    Right: `requires_grad_(False)` and `.eval()` on the frozen part, after each `model.train()`
    """
    record.need_training()
    drifting = [
        name for table in record.of("params") if table["model"] in record.trained_models for name in _drifting(table)
    ]
    drifting = drifting or sorted({e["name"] for e in record.of("frozen_norm")})
    if drifting:
        yield Finding(
            measured=f"{plural(len(drifting), 'frozen batch norm')} with changing statistics",
            expected="0",
            message="the frozen part of the model still learns the statistics of the new data",
            location=shortlist(drifting),
            hint="put the frozen part into eval mode after each model.train()",
        )


def _drifting(table: Event) -> list[str]:
    """Running means that changed beside weights that are frozen from the start."""
    rows = table["rows"]
    frozen = {r["name"].rpartition(".")[0] for r in rows if not r["trainable"] and not r["was_trainable"]}
    trained = {r["name"].rpartition(".")[0] for r in rows if r["trainable"]}
    changed = [name for name, moved in table["buffers"] if moved and name.endswith("running_mean")]
    return [name for name in changed if name.rpartition(".")[0] in frozen - trained]


# What people write for the keys that optimizers read.
MISNAMED = {
    "learning_rate": "lr", "learningrate": "lr", "lrate": "lr", "l_r": "lr", "rate": "lr", "alpha": "lr",
    "wd": "weight_decay", "weightdecay": "weight_decay", "decay": "weight_decay", "l2": "weight_decay",
    "beta": "betas", "mom": "momentum", "epsilon": "eps",
}  # fmt: skip


@rule("OPT713", subject=Subject.RUN)
def group_key_never_read(record: Record) -> Iterator[Finding]:
    """A setting of the optimizer is written under a name that it does not read.

    Why it matters: a group is a plain dict: a misspelt key is kept without a word, and the learning rate stays what it
    was.
    Found by: keys that the script adds to `param_groups` and that are another name of one that the optimizer has.
    Not an error: keys of one's own, such as `name`, `lr_scale` or `initial_lr`.

    Wrong: `group["learning_rate"] = rate`
    Right: `group["lr"] = rate`
    """
    record.need_training()
    for event in record.of("group_key"):
        known = record.optimizers[event["opt"]]["groups"][0]
        meant = MISNAMED.get(event["key"].lower())
        if meant in known and event["key"] not in known:
            yield Finding(
                measured=f"param_groups[...][{event['key']!r}] is set",
                expected=f"[{meant!r}]",
                message=f"{record.optimizers[event['opt']]['cls']} reads {meant!r}, and nothing reads {event['key']!r}",
                location=_written_at(record, event["key"]),
                hint=f"group[{meant!r}] = ...",
            )


def _written_at(record: Record, key: str) -> str:
    """The first line of the source that assigns to a key."""
    pattern = re.compile(rf"""\[\s*["']{re.escape(key)}["']\s*\]\s*[-+*/]?=(?!=)""")
    for path, text in record.sources.items():
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line):
                return f"{path}:{number}"
    return ""
