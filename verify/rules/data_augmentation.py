"""DAT: whether what should be random in the data is, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report import Finding, Status, plural, shortlist
from verify.rules import Subject, rule
from verify.rules.data_code import TransformCode
from verify.rules.data_order import epochs_repeat, judged_orders
from verify.rules.data_probe import Json, data_probe, measured_evals, part_of, place_of, sees_training_data
from verify.trace.record import NotSeenError, Record

# Fewer fetched items than this say nothing about items that change only now and then.
FEW_ITEMS = 3
SURE_ITEMS = 8


def _constant_items(record: Record, least: int) -> tuple[Json, Json, Json] | None:
    """(probe, augmentation, train items) when fetching training items again gives the same, else None."""
    probe = data_probe(record)
    seen = part_of(probe, "augmentation")
    items = part_of(seen, "train")
    if items["varying"] or items["batch_varies"]:
        return None
    if items["n"] < least:
        raise NotSeenError(f"only {plural(items['n'], 'training item')} could be fetched in time")
    return probe, seen, items


@rule("DAT201", subject=Subject.RUN)
def train_augmentation_lost(record: Record) -> Iterator[Finding]:
    """Training has lost its augmentation to another split.

    Why it matters: `random_split` gives two views of one dataset object. Setting the transform of the validation view
    sets that of training too: training then runs without augmentation, and nothing says so.
    Found by: fetching training items under several seeds (all equal), a dataset object that is shared with an
    evaluation split, and a random transform or switch of that object that was replaced from outside.
    Not an error: two views of one dataset without any random transform; augmentation in a collate function or in the
    loop.

    Wrong: `train, val = random_split(full, [45000, 5000]); val.dataset.transform = eval_transform`
    Right: two dataset objects, each with its own transform, and `Subset`s of them with disjoint indices
    References: gromo issue 58.
    """
    found = _constant_items(record, FEW_ITEMS)
    if found is None:
        items = data_probe(record)["augmentation"]["train"]
        yield Finding(status=Status.PASS, measured=_changing(items))
        return
    probe, seen, items = found
    shared = [made for made in seen["shared"] if probe["evals"][made["eval"]]["evaluated"]]
    if not shared or seen["run_changes_input"]:
        return
    code = TransformCode(record)
    switches = (probe.get("flags") or {}).get("switches") or {}
    switched = [name for name in switches if name in code.set_from_outside]
    replaced = [name for name in seen["attributes"] if name in code.set_from_outside]
    random = (isinstance(seen["alive"], list) and bool(seen["alive"])) or code.random_transforms_given
    if not switched and not (random and (replaced or not code.trees)):
        return
    name = (switched or replaced or ["transform"])[0]
    sure = bool(code.trees) and (bool(switched) or not code.called_directly)
    yield Finding(
        status=Status.FAIL if sure else Status.WARN,
        measured=f"{items['n']} of {items['n']} train items equal under {items['seeds']} seeds",
        expected="items that change with the seed",
        message=f"the split shares its {shared[0]['dataset']} with an evaluation split, whose "
        f"{name.replace('_', ' ')} was set last",
        location=code.set_from_outside.get(name) or place_of(probe["train"]),
        hint="give each split its own dataset object (or a wrapper that applies its own transform)",
    )


def _changing(items: Json) -> str:
    if items["batch_varies"]:
        return "batches change with the seed"
    return f"{items['varying']} of {items['n']} train items change with the seed"


@rule("DAT202", severity=Status.WARN, subject=Subject.RUN)
def augmentation_never_used(record: Record) -> Iterator[Finding]:
    """A random transform was built, and training never uses it.

    Why it matters: the network overfits earlier than it should, and the code reads as if it were augmented.
    Found by: training items that are equal under several seeds, together with a random transform that no line of the
    program reads, or that hangs on the dataset and does not run when an item is fetched.
    Not an error: a transform behind a switch that is off; augmentation of batches in the loop; a transform that is
    built for a figure or for test time only, which is why this is a warning.

    Wrong: `augment = Compose([RandomCrop(32, 4), ToTensor()]); train = CIFAR10(root, transform=to_tensor)`
    Right: `train = CIFAR10(root, transform=augment)`
    """
    found = _constant_items(record, SURE_ITEMS)
    if found is None:
        return
    probe, seen, items = found
    if any(made.status is not Status.PASS for made in train_augmentation_lost(record)):
        return
    measured = f"{items['n']} of {items['n']} train items equal under {items['seeds']} seeds"
    code = TransformCode(record)
    unused = code.unused_random_transforms
    switches = (probe.get("flags") or {}).get("switches") or {}
    ignored = [(name, code.unread_parameters[name]) for name in switches if name in code.unread_parameters]
    attached = seen["attached"] if isinstance(seen["attached"], list) else []
    if unused:
        yield Finding(
            measured=measured,
            expected="items that change with the seed",
            message=f"{unused[0][0]} is a random transform that nothing reads",
            location=unused[0][1],
            hint="pass it to the training dataset, or remove it",
        )
    elif items.get("draws") == items["n"] and not seen["run"] and code.discarded_random_calls:
        yield Finding(
            measured=measured + ", and each draws random numbers",
            expected="items that change with the seed",
            message="the result of a random transform is thrown away",
            location=code.discarded_random_calls[0],
            hint="assign it: image = self.transform(image)",
        )
    elif ignored:
        yield Finding(
            measured=f"{measured}; {ignored[0][0]} is off",
            expected="items that change with the seed",
            message=f"nothing reads the argument {ignored[0][0]} that should switch augmentation on",
            location=ignored[0][1],
            hint=f"self.{ignored[0][0]} = {ignored[0][0]}",
        )
    elif attached and not seen["run"] and not switches:
        yield Finding(
            measured=measured,
            expected="items that change with the seed",
            message=f"the training data holds {shortlist(attached)}, which does not run when an item is fetched",
            location=place_of(probe["train"]),
            hint="does __getitem__ apply the transform? are items cached after the first augmentation?",
        )


@rule("DAT203", subject=Subject.RUN)
def eval_data_random(record: Record) -> Iterator[Finding]:
    """The data of an evaluation changes from one pass to the next.

    Why it matters: the metric is noisy and usually pessimistic, and the best checkpoint is partly luck.
    Found by: fetching the same items of the evaluation split under several seeds, also through the collate function.
    Not an error: the accuracy on the training split with its augmentation, next to a real validation.

    Wrong: `full = CIFAR10(root, transform=train_transform); train, val = random_split(full, [45000, 5000])`
    Right: the validation split reads through a dataset object with the transform of evaluation
    References: efficient_densenet_pytorch issue 51, pytorch-randaugment issue 16.
    """
    probe = data_probe(record)
    seen = part_of(probe, "augmentation")
    own = sees_training_data(probe)
    made = [{"skipped": "training data"} if i in own else result for i, result in enumerate(seen["evals"])]
    for view, items in measured_evals(probe, made):
        if not items["varying"] and not items["batch_varies"]:
            continue
        always = "own" in items["generators"]
        yield Finding(
            measured="batches change with the seed"
            if not items["varying"]
            else f"{items['varying']} of {items['n']} items differ between fetches",
            expected="0",
            message="the evaluation data is random" + (", even under one seed" if always else ""),
            location=place_of(view),
            hint="evaluation gets its own deterministic transform: resize, centre crop, normalise",
        )
        return


@rule("DAT206", subject=Subject.RUN)
def worker_randomness_repeats(record: Record) -> Iterator[Finding]:
    """Loader workers draw the same random numbers.

    Why it matters: the augmentation of one worker repeats that of another, or that of every epoch before: far fewer
    distinct samples than it seems.
    Found by: the same items, fetched in processes that are set up like worker 0 and 1 of one epoch and worker 0 of the
    next, with `worker_init_fn`.
    Not an error: torch seeds torch, NumPy (since 1.9) and random in each worker by itself.

    Wrong: `worker_init_fn=lambda i: np.random.seed(42)`; `self.rng = np.random.default_rng(0)` in the dataset
    Right: `worker_init_fn=lambda i: np.random.seed(torch.initial_seed() % 2**32)`, or none
    References: pytorch issue 5059, lightning issue 20412.
    """
    probe = data_probe(record)
    made = part_of(probe, "workers")
    count = made["n"]
    if made["expected_to_differ"] < min(6, max(4, count)):
        raise NotSeenError(f"{plural(count, 'item')} that rarely differ are too few")
    between = made["equal_between_workers"] == count
    repeated = made["equal_between_epochs"] == count and not made["persistent"]
    if not between and not repeated:
        yield Finding(status=Status.PASS, measured=f"{count} items differ between workers and epochs")
        return
    yield Finding(
        measured=f"{count} of {count} items equal " + ("in two workers" if between else "in two epochs of one worker"),
        expected=f"about {made['expected_to_differ']:.0f} that differ",
        message="each worker starts with the same random state"
        if between
        else "every epoch repeats the random numbers of the one before",
        location=place_of(probe["train"]),
        hint="worker_init_fn seeds with a constant: use torch.initial_seed(), or leave it out"
        if made["worker_init_fn"]
        else "a generator that the dataset makes once is copied into every worker: make it from torch.initial_seed()",
    )


@rule("DAT220", severity=Status.WARN, subject=Subject.RUN)
def augmentation_repeats(record: Record) -> Iterator[Finding]:
    """Every epoch repeats the same augmentation.

    Why it matters: each sample is then augmented once, and the network sees no more than that one variant.
    Found by: batches that are equal bit for bit in every epoch although items are random; or random transforms that
    run and change their input while the items stay equal under all seeds.
    Not an error: data without augmentation; a generator that goes on from epoch to epoch.

    Wrong: `torch.manual_seed(index)` in `__getitem__`; a seed that is set in the epoch loop
    Right: seed once at the start of the program
    """
    probe = data_probe(record)
    seen = part_of(probe, "augmentation")
    items = part_of(seen, "train")
    if not items["varying"]:
        active = list((probe.get("flags") or {}).get("active") or {})
        repeats = bool(active) or seen["run_changes_input"]
        if repeats and items["n"] >= SURE_ITEMS and not items["batch_varies"]:
            yield Finding(
                measured=f"{items['n']} of {items['n']} train items equal under {items['seeds']} seeds",
                expected="items that change with the seed",
                message=f"{shortlist(seen['run'] or active)} does the same to an item every time",
                location=place_of(probe["train"]),
                hint="is a seed set in __getitem__?",
            )
        return
    if 2 * items["varying"] < items["n"]:
        raise NotSeenError("few items are random")
    for loader, epochs in judged_orders(record):
        if epochs_repeat(epochs, "inputs"):
            yield Finding(
                measured=f"batches equal bit for bit in each of {len(epochs)} epochs",
                expected="other draws every epoch",
                message="the augmentation draws the same numbers every epoch",
                location=str(loader.get("loc") or ""),
                hint="is a seed set within the epoch loop?",
            )
            return
