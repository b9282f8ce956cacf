"""DAT: what the loaders deliver, and whether the splits are what they should be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from math import log
from typing import Any

from verify.report import Finding, Status, plural, shortlist
from verify.rules import Subject, rule
from verify.trace.child.names import role, role_of_all
from verify.trace.record import NotSeenError, Record

Json = dict[str, Any]

# Fewer fetched items than this say nothing about items that change only now and then.
FEW_ITEMS = 3
SURE_ITEMS = 8
# Shares of an evaluation split that training sees too. CIFAR and Fashion-MNIST themselves have about 0.03%.
OVERLAP_FAIL = 0.005
OVERLAP_SILENT = 0.001
CONTAINED = 0.99
MIN_ORDERED = 32  # a smaller training set may well be read in order
# Inputs. Pictures in [0, 1] have a standard deviation of about 0.25, normalised ones of about 1.
LARGE_INPUT = 20.0
NO_RANGE = 0.05
MEAN_LIMIT = 1.0
STD_LIMITS = (0.3, 5.0)
IMAGENET_RANGE = (-2.2, 2.7)
SWAP_TOLERANCE = 0.25  # in the logarithm: random crops with a black border move mean and std by 15%
SPLIT_SHIFT = 0.5
RAW_RATIO = 1.5
SPLIT_RATIO = 2.0
MIN_PICTURES = 48
SCRAMBLED = 0.75  # roughness of the unscrambled picture, relative to the delivered one
COMB_RATIO, COMB_ERRORS = 0.98, 8.0
# Label statistics, in standard deviations from what shuffled labels give.
PREDICTABLE = 5.0
CHANCE = 1.64
UNPREDICTABLE = 3.0
LEAST_LABELLED, LEAST_NUMBERED = 200, 300
LEAST_STEPS = 40
IGNORED_LABELS = {-100, -1, 255}

RANDOM_CODE = re.compile(
    r"^(Random[A-Z]\w*|\w*Jitter|AutoAugment|RandAugment|TrivialAugmentWide|AugMix|\w*Cutout|CoarseDropout"
    r"|HorizontalFlip|VerticalFlip|ShiftScaleRotate|rand|randn|randint|random|uniform|choice|bernoulli|normal|randrange"
    r"|getrandbits|rand_like|randn_like|gauss)$"
)
TRANSFORM_NAME = re.compile(r"transform|augment|(^|_)aug(_|$|s$)|(^|_)tfms?(_|$)|(^|_)tf(_|$)", re.IGNORECASE)
TRAIN_NAME = re.compile(r"train|(^|_)aug|augment", re.IGNORECASE)


def _part(probe: Json, name: str) -> Json:
    """One entry of the probe's result.

    Raises:
        NotSeenError: it could not be measured.
    """
    part: Any = probe.get(name)
    if part is None and probe.get("skipped"):
        raise NotSeenError(probe["skipped"])
    if not isinstance(part, dict):
        raise NotSeenError("not measured")
    if part.get("skipped"):
        raise NotSeenError(part["skipped"])
    return part


def _data(record: Record) -> Json:
    """The result of the probe, with `evaluated` in each description of a loader.

    A loader that no model has seen without learning from it (it may have served to compute a mean) is no evaluation.
    """
    probe = dict(record.probe("data"))
    passes = record.of("iter_end")
    evaluated = {event["loader"] for event in passes if event.get("forwards") and not event.get("steps")}
    probe["evals"] = [
        {**view, "evaluated": not passes or view["id"] is None or view["id"] in evaluated}
        for view in probe.get("evals", [])
    ]
    probe.setdefault("train", {})
    return probe


def _judged(probe: Json, parts: list[Any]) -> list[tuple[Json, Json]]:
    """(description, result) of every evaluation loader whose result could be measured.

    Raises:
        NotSeenError: none could.
    """
    both = zip(probe["evals"], parts, strict=False)
    pairs = [(view, made) for view, made in both if view["evaluated"] and not made.get("skipped")]
    if not pairs:
        raise NotSeenError(next((made["skipped"] for made in parts if made.get("skipped")), "no evaluation was seen"))
    return pairs


def _overlaps(probe: Json) -> list[Json]:
    found = probe.get("overlap")
    return found if isinstance(found, list) else [{"skipped": "not compared"} for _ in probe.get("evals", [])]


def _sees_training_data(probe: Json) -> set[int]:
    """Indices of evaluation loaders that hold training samples alone: a train accuracy, or a split that is none."""
    return {
        index
        for index, made in enumerate(_overlaps(probe))
        if probe["evals"][index]["is_train_loader"] or made.get("share", 0.0) >= CONTAINED
    }


def _where(view: Json) -> str:
    return str(view.get("loc") or view.get("name") or "")


class _Code:
    """What the run's source files say about transforms. Names are not resolved further than one reader would."""

    def __init__(self, record: Record) -> None:
        self.trees: dict[str, ast.Module] = {}
        for path, text in record.sources.items():
            if path.endswith(".py"):
                try:
                    self.trees[path] = ast.parse(text)
                except (SyntaxError, ValueError):
                    continue

    def _nodes(self) -> Iterator[tuple[str, ast.AST]]:
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                yield path, node

    @cached_property
    def set_from_outside(self) -> dict[str, str]:
        """Attributes that are assigned on something other than `self`, and where."""
        found: dict[str, str] = {}
        for path, node in self._nodes():
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
                name = node.args[1] if len(node.args) > 1 else None
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    found.setdefault(name.value, f"{path}:{node.lineno}")
            for target in targets:
                if isinstance(target, ast.Attribute) and not _is_self(target.value):
                    found[target.attr] = f"{path}:{target.lineno}"
        return found

    @cached_property
    def definitions(self) -> dict[str, list[ast.AST]]:
        """What each name of a function, class or variable stands for."""
        found: dict[str, list[ast.AST]] = {}
        for _, node in self._nodes():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        found.setdefault(target.id, []).append(node.value)
        return found

    def is_random(self, node: ast.AST, depth: int = 0) -> bool:
        """Whether an expression mentions something random, also through the names that it uses."""
        for part in ast.walk(node):
            name = part.id if isinstance(part, ast.Name) else part.attr if isinstance(part, ast.Attribute) else ""
            if not name:
                continue
            if RANDOM_CODE.match(name):
                return True
            if depth < 3 and isinstance(part, ast.Name):
                known = [made for made in self.definitions.get(name, []) if made is not node]
                if any(self.is_random(made, depth + 1) for made in known):
                    return True
        return False

    @cached_property
    def random_transforms_given(self) -> bool:
        """Whether something random is given to a dataset: as an argument or attribute that is called a transform."""
        for _, node in self._nodes():
            if isinstance(node, ast.keyword) and node.arg and TRANSFORM_NAME.search(node.arg):
                if self.is_random(node.value):
                    return True
            elif isinstance(node, ast.Assign):
                named = [_last_name(target) for target in node.targets]
                if any(TRANSFORM_NAME.search(name) for name in named) and self.is_random(node.value):
                    return True
        return False

    @cached_property
    def discarded_random_calls(self) -> list[str]:
        """Where the result of a random transform is not used: of a transform attribute, or a function that returns."""
        found = []
        for path, node in self._nodes():
            if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
                continue
            name = _last_name(node.value.func)
            functions = [made for made in self.definitions.get(name, []) if isinstance(made, ast.FunctionDef)]
            returning = [made for made in functions if _returns(made) and self.is_random(made)]
            attribute = isinstance(node.value.func, ast.Attribute) and not functions and TRANSFORM_NAME.search(name)
            if returning or attribute:
                found.append(f"{path}:{node.lineno}")
        return found

    @cached_property
    def unread_parameters(self) -> dict[str, str]:
        """Parameters of constructors that their body never reads, and where."""
        found = {}
        for path, node in self._nodes():
            if not isinstance(node, ast.FunctionDef) or node.name != "__init__":
                continue
            read = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
            for argument in [*node.args.args[1:], *node.args.kwonlyargs]:
                if argument.arg not in read:
                    found[argument.arg] = f"{path}:{node.lineno}"
        return found

    @cached_property
    def called_directly(self) -> bool:
        """Whether a variable that holds something random is called like a function: augmentation in the loop."""
        variables = {
            name
            for name, made in self.definitions.items()
            if any(isinstance(value, ast.Call) and self.is_random(value) for value in made)
        }
        return any(
            isinstance(node, ast.Call) and _last_name(node.func) in variables and not isinstance(node.func, ast.Call)
            for _, node in self._nodes()
        )

    @cached_property
    def unused_random_transforms(self) -> list[tuple[str, str]]:
        """(name, location) of variables that hold a random transform and are never read, in any file."""
        read = set()
        for _, node in self._nodes():
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                read.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.alias):
                read.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)  # __all__, getattr, globals()[...]
        found = []
        for path, node in self._nodes():
            if not isinstance(node, ast.Assign) or len(node.targets) != 1:
                continue
            for target in _flat_targets(node.targets[0]):
                name = _last_name(target)
                alone = target is node.targets[0]
                likely = TRANSFORM_NAME.search(name) or _makes_transform(node.value)
                if not name or name.startswith("_") or name in read or not likely:
                    continue
                if (
                    (alone or TRAIN_NAME.search(name))
                    and self.is_random(node.value)
                    and isinstance(node.value, ast.Call)
                ):
                    found.append((name, f"{path}:{node.lineno}"))
        return found


def _returns(function: ast.FunctionDef) -> bool:
    return any(isinstance(part, ast.Return) and part.value is not None for part in ast.walk(function))


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return _last_name(node.value) if isinstance(node, ast.Subscript) else ""


def _flat_targets(target: ast.expr) -> list[ast.expr]:
    return list(target.elts) if isinstance(target, (ast.Tuple, ast.List)) else [target]


def _makes_transform(value: ast.expr) -> bool:
    name = _last_name(value.func) if isinstance(value, ast.Call) else ""
    return name in ("Compose", "Sequential") or bool(RANDOM_CODE.match(name) and name[:1].isupper())


def _constant_items(record: Record, least: int) -> tuple[Json, Json, Json] | None:
    """(probe, augmentation, train items) when fetching training items again gives the same, else None."""
    probe = _data(record)
    seen = _part(probe, "augmentation")
    items = _part(seen, "train")
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
        items = _data(record)["augmentation"]["train"]
        yield Finding(status=Status.PASS, measured=_changing(items))
        return
    probe, seen, items = found
    shared = [made for made in seen["shared"] if probe["evals"][made["eval"]]["evaluated"]]
    if not shared or seen["run_changes_input"]:
        return
    code = _Code(record)
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
        location=code.set_from_outside.get(name) or _where(probe["train"]),
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
    code = _Code(record)
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
            location=_where(probe["train"]),
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
    probe = _data(record)
    seen = _part(probe, "augmentation")
    own = _sees_training_data(probe)
    made = [{"skipped": "training data"} if i in own else result for i, result in enumerate(seen["evals"])]
    for view, items in _judged(probe, made):
        if not items["varying"] and not items["batch_varies"]:
            continue
        always = "own" in items["generators"]
        yield Finding(
            measured="batches change with the seed"
            if not items["varying"]
            else f"{items['varying']} of {items['n']} items differ between fetches",
            expected="0",
            message="the evaluation data is random" + (", even under one seed" if always else ""),
            location=_where(view),
            hint="evaluation gets its own deterministic transform: resize, centre crop, normalise",
        )
        return


# Order


def _train_epochs(record: Record) -> Iterator[tuple[Json, list[list[Json]]]]:
    """Each training loader, with the first batches of each of its epochs.

    Loaders that are made anew every epoch by one line are one loader here.
    """
    training = _training_passes(record)
    ids = {loader for loader, _ in training}
    loaders = {event["id"]: event for event in record.of("loader") if event["id"] in ids}
    if not loaders:
        raise NotSeenError("no DataLoader was used for training")
    epochs: dict[tuple[int, int], list[Json]] = {}
    for event in record.of("batch_print"):
        if (event["loader"], event["epoch"]) in training:
            epochs.setdefault((event["loader"], event["epoch"]), []).append(event)
    groups: dict[Any, tuple[Json, list[list[Json]]]] = {}
    for (loader, _), prints in epochs.items():
        made = loaders.get(loader)
        if made is not None:
            line = (made.get("loc"), made.get("sampler"), made.get("batch_size"), made.get("n"))
            groups.setdefault(line if made.get("loc") else loader, (made, []))[1].append(prints)
    yield from groups.values()


def _training_passes(record: Record) -> set[tuple[int, int]]:
    """(loader, pass number) of the passes that a model learned from."""
    learned = {event["iteration"] for event in record.of("iter_end") if event.get("steps") or event.get("backwards")}
    passes = {(event["loader"], event["epoch"]) for event in record.of("iter_begin") if event["iteration"] in learned}
    phases = [event for event in record.of("phase") if event.get("phase") == "train" and "epoch" in event]
    return passes | {(event["loader"], event["epoch"]) for event in phases}


def _repeats(epochs: list[list[Json]], field: str) -> bool:
    """Whether every epoch begins with the same batches."""
    length = min(len(prints) for prints in epochs)
    rows = [tuple(event.get(field) for event in prints[:length]) for prints in epochs]
    return length > 0 and all(rows[0]) and len(set(rows)) == 1


def _order_can_be_judged(loader: Json, epochs: list[list[Json]]) -> bool:
    size, batch = loader.get("n") or 0, loader.get("batch_size") or 0
    return len(epochs) >= 2 and size >= MIN_ORDERED and 0 < batch < size and not loader.get("iterable")


def _judged_orders(record: Record) -> list[tuple[Json, list[list[Json]]]]:
    judged = [(loader, epochs) for loader, epochs in _train_epochs(record) if _order_can_be_judged(loader, epochs)]
    if not judged:
        raise NotSeenError("no training loader with several batches was seen for two epochs")
    return judged


@rule("DAT204", severity=Status.WARN, subject=Subject.RUN)
def train_order_fixed(record: Record) -> Iterator[Finding]:
    """Training reads its samples in the same order every epoch, as they are stored.

    Why it matters: batches always hold the same samples, which costs accuracy; where samples are stored class by class
    the network forgets one class while it sees the next.
    Found by: a sequential sampler and equal batches at the beginning of every epoch. An error when batches hold far
    fewer classes than they would by chance.
    Not an error: the whole set in one batch, tiny sets, streams; sequences that must stay in order, which is why this
    is a warning.

    Wrong: `DataLoader(train, batch_size=128)`
    Right: `DataLoader(train, batch_size=128, shuffle=True)`
    References: super-gradients issue 416.
    """
    for loader, epochs in _judged_orders(record):
        if loader.get("sampler") != "SequentialSampler" or loader.get("shuffle"):
            continue
        if not _repeats(epochs, "labels" if epochs[0][0].get("labels") else "inputs"):
            continue
        found = _sorted_batches(record, epochs[0])
        yield Finding(
            status=Status.FAIL if found else Status.WARN,
            measured=f"the same batches in each of {len(epochs)} epochs" + (f"; {found}" if found else ""),
            expected="another order every epoch",
            message="samples come sorted by class and are not shuffled"
            if found
            else "the training data is not shuffled",
            location=str(loader.get("loc") or ""),
            hint="shuffle=True",
        )
        return


def _sorted_batches(record: Record, prints: list[Json]) -> str:
    """What shows that samples are stored class by class; empty when they are not."""
    classes = _class_count(record)
    batches = [event for event in prints if event.get("classes") and event.get("n", 0) >= 16]
    if not classes or classes < 2 or not batches:
        return ""
    seen = sum(event["classes"] for event in batches) / len(batches)
    size = batches[0]["n"]
    by_chance = classes * (1 - (1 - 1 / classes) ** size)
    few = seen <= max(1.0, by_chance / 3)
    return f"a batch of {size} holds {seen:.0f} of {classes} classes" if few else ""


def _class_count(record: Record) -> int | None:
    try:
        probe = _data(record)
    except NotSeenError:
        return None
    train = (probe.get("labels") or {}).get("train") or {}
    distinct = train.get("distinct")
    if distinct and distinct <= max(2, train["n"] // 4):
        return int(distinct)
    count = probe.get("num_classes")
    return int(count) if count else None


@rule("DAT205", severity=Status.WARN, subject=Subject.RUN)
def order_repeats(record: Record) -> Iterator[Finding]:
    """The shuffled order is the same every epoch.

    Why it matters: every epoch then forms the same batches, although `shuffle=True` says otherwise.
    Found by: a random sampler, and equal batches at the beginning of every epoch.
    Not an error: a generator that is seeded once, before the first epoch.

    Wrong: `for epoch in range(50): torch.manual_seed(0); ...`
    Right: seed once at the start of the program
    """
    for loader, epochs in _judged_orders(record):
        shuffled = loader.get("sampler") in ("RandomSampler", "SubsetRandomSampler", "WeightedRandomSampler")
        told_apart = any((event.get("classes") or 2) > 1 for event in epochs[0])
        field = "labels" if epochs[0][0].get("labels") and told_apart else "inputs"
        if shuffled and _repeats(epochs, field):
            yield Finding(
                measured=f"the same batches in each of {len(epochs)} epochs",
                expected="another order every epoch",
                message="the data is shuffled, and in the same way every epoch",
                location=str(loader.get("loc") or ""),
                hint="is a seed set within the epoch loop, or a generator made anew with a fixed seed?",
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
    probe = _data(record)
    made = _part(probe, "workers")
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
        location=_where(probe["train"]),
        hint="worker_init_fn seeds with a constant: use torch.initial_seed(), or leave it out"
        if made["worker_init_fn"]
        else "a generator that the dataset makes once is copied into every worker: make it from torch.initial_seed()",
    )


# Splits


@rule("DAT207", subject=Subject.RUN)
def splits_overlap(record: Record) -> Iterator[Finding]:
    """An evaluation split holds samples that training sees.

    Why it matters: the score is that of memory, and the best checkpoint the one that memorised most.
    Found by: indices of views of one dataset; else the raw rows, files or items of both splits, by hash. Without a
    DataLoader: the rows of the tensors that batches are cut from, and of those that are called validation or test.
    Not an error: the accuracy on training data next to a real validation, unless the split is called validation or
    test; a fold that training leaves out by index; a few duplicates, which CIFAR and Fashion-MNIST have themselves;
    samples that occur twice within a split too, such as blank pictures.

    Wrong: `val_index = order[:5000]; train_index = order[2500:]`; `CIFAR10(root, train=True)` as test set
    Right: `train_index, val_index = order[:45000], order[45000:]`
    References: facenet issue 641, hydra issue 4; fashion-mnist issue 44 on duplicates that are published.
    """
    probe = _data(record)
    judged = _judged(probe, _overlaps(probe))
    clean = any(made["share"] < OVERLAP_FAIL for _, made in judged)
    others = _evaluated_later(record, probe) or len(judged) < sum(view["evaluated"] for view in probe["evals"])
    for view, made in judged:
        held_out = _held_out(record, view)
        if made["share"] >= CONTAINED and clean and not held_out:
            continue
        status = _overlap_status(made, others and not held_out)
        if status is None:
            continue
        share = f"{made['share']:.1%}" if made["share"] < 1 else "all"
        yield Finding(
            status=status,
            measured=f"{share} of {made['n']:,} evaluation samples are in the training data (by {made['method']})",
            expected="0",
            message="the only evaluation runs over the training loader"
            if made["method"] == "same loader"
            else "training and evaluation share samples",
            location=_where(view),
            hint="split the indices once, without overlap, before either dataset is made",
        )
        return
    yield Finding(status=Status.PASS, measured=f"{plural(len(judged), 'evaluation split')} compared")


def _held_out(record: Record, view: Json) -> bool:
    """Whether the script calls a split validation or test, by what holds its loader or by the line that makes it."""
    names = [name for name in view.get("names") or [] if not name.rpartition(".")[2].isdigit()]  # no item of a list
    if any(role(name) for name in names):
        return role_of_all(names) == "eval"
    return role_of_all(_names_in_source(record, str(view.get("loc") or ""))) == "eval"


def _names_in_source(record: Record, loc: str) -> list[str]:
    """Names that the statement at a place assigns to, keys that it fills, or the function that returns from there."""
    path, _, number = loc.rpartition(":")
    text = next((text for name, text in record.sources.items() if name == path or name.endswith("/" + path)), None)
    if text is None or not number.isdigit():
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    line = int(number)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Assign, ast.Return)) or not node.lineno <= line <= (node.end_lineno or 0):
            continue
        if isinstance(node, ast.Assign):
            return _assigned_at(node, line)
        functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and node in ast.walk(f)]
        return [function.name for function in functions[-1:]] if isinstance(node.value, ast.Call) else []
    return []


def _assigned_at(node: ast.Assign, line: int) -> list[str]:
    targets = _flat_targets(node.targets[0])
    value = node.value
    if isinstance(value, ast.Tuple) and len(value.elts) == len(targets):
        at = [t for t, made in zip(targets, value.elts, strict=True) if made.lineno <= line <= (made.end_lineno or 0)]
        return [_last_name(t) for t in at] if len(at) == 1 else []
    if isinstance(value, ast.Dict):
        pairs = zip(value.keys, value.values, strict=True)
        at_keys = [key for key, made in pairs if made.lineno <= line <= (made.end_lineno or 0)]
        return [str(key.value) for key in at_keys if isinstance(key, ast.Constant)] if len(at_keys) == 1 else []
    if len(targets) != 1:
        return []
    target = targets[0]
    key = target.slice if isinstance(target, ast.Subscript) else None
    return [str(key.value)] if isinstance(key, ast.Constant) else [_last_name(target)]


def _evaluated_later(record: Record, probe: Json) -> bool:
    """Whether the run evaluates loaders that had not been used when the probe was made."""
    known = {view["id"] for view in probe["evals"]}
    if None in known:
        return False
    passes = [event["loader"] for event in record.of("iter_end") if event.get("forwards") and not event.get("steps")]
    phases = [event.get("loader") for event in record.of("phase") if event.get("phase") not in ("train", None)]
    return any(loader not in known and loader != probe["train"].get("id") for loader in [*passes, *phases])


def _overlap_status(made: Json, others: bool) -> Status | None:
    share, common = made["share"], made["common"]
    if made["method"] == "same loader":
        return None if others else Status.WARN
    if share < OVERLAP_SILENT or (made["method"] != "index" and common < 3):
        return None
    if share < OVERLAP_FAIL or (share >= CONTAINED and others):
        return Status.WARN
    if made["method"] == "index":
        return Status.FAIL
    told_apart = made.get("unique_train", 1.0) >= 0.5 and made["unique"] >= 0.5 * min(made["n"], 256)
    if made["method"] == "batches" or common < 5 or not told_apart:
        return Status.WARN if told_apart else None
    return Status.FAIL


# Inputs


@rule("DAT209", severity=Status.WARN, subject=Subject.RUN)
def normalisation_off(record: Record) -> Iterator[Finding]:
    """The inputs are not scaled as they should be.

    Why it matters: inputs of 0 to 255, or all close to one number, learn slowly or not at all at usual learning rates.
    Found by: range, mean and standard deviation of the training pictures, and of what reaches the first layer with
    weights; the constants of Normalize against the raw statistics that they imply.
    Not an error: pictures in [0, 1] or [-1, 1]; another dataset's constants, as fine-tuning needs them; scaling on the
    device or within the model; strong augmentation, when the evaluation split has the usual scale.

    Wrong: `Normalize((0.247, 0.243, 0.262), (0.491, 0.482, 0.447))`, mean and std swapped
    Right: `Normalize((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))`
    References: torchvision issue 546, facenet-pytorch issue 89.
    """
    probe = _data(record)
    stats = _part(probe, "stats")
    made = _what_is_trained_on(stats)
    where = _where(probe["train"])
    if made["non_finite"]:
        yield Finding(
            status=Status.FAIL,
            measured=f"{made['non_finite']:,} inputs are NaN or infinite",
            expected="0",
            message="the training inputs are not all finite",
            location=where,
            hint="a channel with standard deviation 0, or missing values in the data",
        )
        return
    if not probe["image_like"] or len(made["shape"]) != 3:
        raise NotSeenError("the inputs are not pictures")
    varying = bool(((probe.get("augmentation") or {}).get("train") or {}).get("varying"))
    finding = _scale_problem(made, stats, varying)
    if finding is not None:
        status, measured, expected, message, hint = finding
        yield Finding(status=status, measured=measured, expected=expected, message=message, location=where, hint=hint)


def _what_is_trained_on(stats: Json) -> Json:
    """Statistics of what the model was given where the loop scales its batches, else of what the loader delivers."""
    loaded, given = stats["train"], stats.get("model_input") or {"skipped": "not measured"}
    if loaded.get("skipped"):
        return _part(stats, "model_input")
    if given.get("skipped") or given["shape"] != loaded["shape"]:
        return dict(loaded)
    width = max(loaded["max"] - loaded["min"], 1e-12)
    moved = max(abs(loaded["max"] - given["max"]), abs(loaded["min"] - given["min"]))
    return dict(given if moved > 0.5 * width else loaded)


def _scale_problem(made: Json, stats: Json, varying: bool) -> tuple[Status, str, str, str, str] | None:
    low, high = made["min"], made["max"]
    first = stats.get("first_layer") or {}
    measured_inside = "max" in first
    span = f"inputs in [{low:.4g}, {high:.4g}]"
    inside = max(abs(first["min"]), abs(first["max"])) if measured_inside else max(abs(low), abs(high))
    if max(abs(low), abs(high)) > LARGE_INPUT and inside > LARGE_INPUT:
        raw = low > -0.02 * high and measured_inside
        return (
            Status.FAIL if raw else Status.WARN,
            span,
            "about [-3, 3], or [0, 1]",
            "the pictures reach the first layer unscaled",
            "divide by 255 (ToTensor does it for uint8 only), then normalise",
        )
    if high - low < NO_RANGE and made["n"] >= 8:
        if measured_inside and first["max"] - first["min"] >= NO_RANGE:
            return None
        return (
            Status.FAIL,
            span,
            "a standard deviation near 1, or pictures in [0, 1]",
            "all inputs are almost one number",
            "divided by 255 twice? constants for 0..255 applied to pictures in [0, 1]?",
        )
    swapped = _swapped(stats["train"], stats.get("normalize"))
    if swapped:
        return (
            Status.FAIL,
            swapped,
            "mean near 0, std near 1",
            "Normalize has its mean and std swapped",
            "Normalize(mean, std)",
        )
    if low >= -1.01 and high <= 1.01:
        return None
    if measured_inside and max(abs(first["min"] - low), abs(first["max"] - high)) > 0.1 * (high - low):
        return None  # the model scales its inputs itself
    if not _is_off(made) or (varying and _may_be_augmentation(made, stats)):
        return None
    if (low >= IMAGENET_RANGE[0] and high <= IMAGENET_RANGE[1]) or len(made["mean"]) > 4:
        return None
    return (
        Status.WARN,
        f"mean {_few(made['mean'])}, std {_few(made['std'])}",
        f"mean within {MEAN_LIMIT:g} of 0, std in [{STD_LIMITS[0]:g}, {STD_LIMITS[1]:g}]",
        "the constants of the normalisation do not fit the data",
        "compute mean and std over the training split, in the range that the pictures have by then",
    )


def _is_off(made: Json, limit: float = MEAN_LIMIT) -> bool:
    far = any(abs(mean) > limit for mean in made["mean"])
    return far or any(not STD_LIMITS[0] <= std <= STD_LIMITS[1] for std in made["std"])


def _may_be_augmentation(made: Json, stats: Json) -> bool:
    """Whether random changes of the pictures (black borders, darker colours) explain it, and not the constants.

    An evaluation split without them shows it; where none was seen, only what is far off counts.
    """
    evals = [one for one in stats["evals"] if not one.get("skipped") and len(one["mean"]) == len(made["mean"])]
    return not any(map(_is_off, evals)) if evals else not _is_off(made, 2 * MEAN_LIMIT)


def _few(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in values[:4]) + ")"


def _swapped(made: Json, normalizers: Any) -> str:
    """What shows that the raw mean was used as std and the raw std as mean; empty when they were not."""
    if not isinstance(normalizers, list) or len(normalizers) != 1 or made.get("skipped"):
        return ""
    given_mean, given_std = normalizers[0]["mean"], normalizers[0]["std"]
    channels = len(made["mean"])
    if len(given_mean) != channels or len(given_std) != channels:
        return ""
    for mean, std, shift, scale in zip(made["mean"], made["std"], given_mean, given_std, strict=True):
        raw_mean, raw_std = mean * scale + shift, std * scale
        if min(raw_mean, raw_std, shift, scale) <= 0 or abs(log(shift / scale)) < 2 * SWAP_TOLERANCE:
            return ""
        if max(abs(log(raw_mean / scale)), abs(log(raw_std / shift))) > SWAP_TOLERANCE:
            return ""
    return f"Normalize(mean={_few(given_mean)}, std={_few(given_std)}) gives mean {_few(made['mean'])}"


@rule("DAT210", severity=Status.WARN, subject=Subject.RUN)
def splits_normalised_differently(record: Record) -> Iterator[Finding]:
    """Training and evaluation inputs are scaled differently.

    Why it matters: the network is evaluated on inputs such as it has never seen; the training loss looks fine.
    Found by: mean and standard deviation of each channel or feature over samples of both splits. An error when one
    split looks raw and the other normalised, or when their Normalize transforms differ.
    Not an error: what augmentation changes (erasing, padding and mixup shrink the standard deviation by a fifth).

    Wrong: `Normalize` in the training transform alone
    Right: the same constants, from the training split, in both
    References: pytorch-cifar-models issue 8.
    """
    probe = _data(record)
    stats = _part(probe, "stats")
    train = _part(stats, "train")
    for index, (view, made) in enumerate(_judged(probe, stats["evals"])):
        if (
            view["is_train_loader"]
            or made["shape"][:1] != train["shape"][:1]
            or min(made["n"], train["n"]) < MIN_PICTURES
        ):
            continue
        constants = _other_constants(stats, index)
        shift, ratio = _difference(train, made)
        augmented = bool(((probe.get("augmentation") or {}).get("train") or {}).get("varying"))
        exchanged = _opposite(train, made)
        raw = _one_is_raw(train, made) and ratio > RAW_RATIO
        alike = shift <= SPLIT_SHIFT and ratio <= SPLIT_RATIO + augmented
        if not constants and not exchanged and not raw and alike:
            continue
        certain = bool(constants) or _one_is_raw(train, made) or (len(train["shape"]) == 1 and (shift > 2 or ratio > 5))
        yield Finding(
            status=Status.FAIL if certain else Status.WARN,
            measured=constants
            or f"train mean {_few(train['mean'])}, std {_few(train['std'])}; "
            f"evaluation mean {_few(made['mean'])}, std {_few(made['std'])}",
            expected="the same scaling",
            message="evaluation inputs are scaled differently from training inputs",
            location=_where(view),
            hint="are red and blue exchanged in one of them? (OpenCV reads BGR)"
            if exchanged and not certain
            else "the transform of evaluation needs the Normalize of training, with the same constants",
        )
        return


def _difference(train: Json, other: Json) -> tuple[float, float]:
    """The shift, in standard deviations, and the ratio of standard deviations.

    Of pictures the largest shift of a channel, for red and blue may be exchanged; of features the median.
    """
    shifts, ratios = [], []
    rows = zip(train["mean"], train["std"], train["error"], other["mean"], other["std"], other["error"], strict=True)
    for mean, std, error, other_mean, other_std, other_error in rows:
        unit = max(std, other_std, 1e-12)
        noise = 3 * (error**2 + other_error**2) ** 0.5
        shifts.append(max(0.0, abs(mean - other_mean) - noise) / unit)
        ratios.append(unit / max(min(std, other_std), 1e-12) if unit > 1e-9 else 1.0)
    shift = max(shifts) if len(train["shape"]) == 3 and len(shifts) <= 4 else sorted(shifts)[len(shifts) // 2]
    return shift, sorted(ratios)[len(ratios) // 2]


def _opposite(train: Json, other: Json) -> bool:
    """Whether the first and the last of three channels clearly moved in opposite directions, the middle one hardly."""
    if len(train["mean"]) != 3 or len(train["shape"]) != 3:
        return False
    moved = [b - a for a, b in zip(train["mean"], other["mean"], strict=True)]
    noise = [(a * a + b * b) ** 0.5 for a, b in zip(train["error"], other["error"], strict=True)]
    clear = [abs(moved[i]) > max(8 * noise[i], 0.25 * train["std"][i]) for i in (0, 2)]
    return all(clear) and moved[0] * moved[2] < 0 and abs(moved[1]) < min(abs(moved[0]), abs(moved[2])) / 2


def _one_is_raw(train: Json, other: Json) -> bool:
    if len(train["shape"]) != 3:
        return False
    raw = [made["min"] >= 0 and (made["max"] <= 1.001 or made["max"] > LARGE_INPUT) for made in (train, other)]
    scales = sorted((max(abs(train["min"]), train["max"]), max(abs(other["min"]), other["max"])))
    return raw[0] != raw[1] or scales[1] > 30 * max(scales[0], 1e-12)


def _other_constants(stats: Json, index: int) -> str:
    ours, theirs = stats.get("normalize"), stats.get("eval_normalize")
    theirs = theirs[index] if isinstance(theirs, list) and len(theirs) > index else None
    if not isinstance(ours, list) or not isinstance(theirs, list) or len(ours) != 1 or len(theirs) != 1:
        return ""
    train, other = ours[0], theirs[0]
    if len(train["mean"]) != len(other["mean"]) or len(train["std"]) != len(other["std"]):
        return ""
    moved = max(abs(a - b) / max(s, 1e-12) for a, b, s in zip(train["mean"], other["mean"], train["std"], strict=True))
    scaled = max(max(a, b) / max(min(a, b), 1e-12) for a, b in zip(train["std"], other["std"], strict=True))
    if moved <= 0.2 and scaled <= 1.5:
        return ""
    return (
        f"Normalize({_few(train['mean'])}, {_few(train['std'])}) in training, "
        f"Normalize({_few(other['mean'])}, {_few(other['std'])}) in evaluation"
    )


@rule("DAT211", subject=Subject.RUN)
def pixels_scrambled(record: Record) -> Iterator[Finding]:
    """The pixels of the pictures are scrambled.

    Why it matters: a convolution sees no neighbourhood any more. The network still learns, much worse.
    Found by: neighbouring pixels differ far less once the memory is read as (height, width, channel).
    Not an error: noise, checkerboards, pictures of one channel.

    Wrong: `torch.tensor(picture).view(3, 32, 32)` of a (32, 32, 3) picture
    Right: `torch.tensor(picture).permute(2, 0, 1)`
    References: Karpathy 2019, "A Recipe for Training Neural Networks".
    """
    probe = _data(record)
    candidates = _part(probe, "stats").get("roughness") or []
    judged = [made for made in (candidates if isinstance(candidates, list) else [candidates]) if "n" in made]
    if not judged:
        raise NotSeenError("no pictures with three channels were seen")
    for made in judged:
        measured = (
            f"neighbours differ {made['as_is']:.2f} sd as delivered, {made['unmixed']:.2f} sd if read as (H, W, C)"
        )
        comb = made["comb"].values()
        like_comb = made["n"] >= 32 and all(ratio < COMB_RATIO and errors < -COMB_ERRORS for ratio, errors in comb)
        if like_comb or (made["n"] >= 4 and made["unmixed"] < SCRAMBLED * made["as_is"]):
            yield Finding(
                measured=measured + ("; alike again every third pixel" if like_comb else ""),
                expected="smoother as delivered",
                message="a (height, width, channel) picture was reshaped to (channel, height, width)",
                location=_where(probe["train"]),
                hint="permute(2, 0, 1) instead of view or reshape",
            )
            return
    yield Finding(status=Status.PASS, measured=measured)


# Labels


@rule("DAT212", subject=Subject.RUN)
def class_map_differs(record: Record) -> Iterator[Finding]:
    """A class has one number in training and another in evaluation.

    Why it matters: right answers are counted as wrong. Where the map comes from an unsorted listing, it may happen on
    one machine only.
    Found by: comparing `class_to_idx`, `classes` and maps of other names, for the names that both splits have.
    Not an error: an evaluation split without some of the classes, if the others keep their numbers.

    Wrong: `classes = os.listdir(root)` in each split
    Right: `classes = sorted(os.listdir(train_root))`, one map for all splits
    References: pytorch-image-models issue 957.
    """
    probe = _data(record)
    made = _part(probe, "class_maps")
    if not made["evals"]:
        raise NotSeenError("the evaluation data has no class names of its own")
    for result in made["evals"]:
        if result["different"]:
            name, ours, theirs = result["example"][0]
            yield Finding(
                measured=f"{result['different']} of {result['classes']} classes have another number, "
                f"{name!r} is {ours} in training and {theirs} in evaluation",
                expected="one map",
                message="the splits number their classes differently",
                location=_where(probe["evals"][result["eval"]]),
                hint="make the map once, sorted, from the training split, and hand it to the others",
            )
            return


def _counts(made: Json) -> dict[int, int]:
    return {int(value): int(count) for value, count in made["counts"]}


def _is_classification(made: Json) -> bool:
    """Whether integer targets are classes: few values, each met several times."""
    return made["distinct"] >= 2 and made["distinct"] <= max(2, made["n"] // 5) and made["distinct"] <= 1000


@rule("DAT214", severity=Status.WARN, subject=Subject.RUN)
def labels_out_of_range(record: Record) -> Iterator[Finding]:
    """Labels do not fit the number of logits.

    Why it matters: a label that has no logit ends the run in the middle of an epoch, or silently trains something else
    on the device; labels that begin at 1 leave the first logit without a class.
    Found by: every label of the training split where it can be read cheaply, against the width of the logits.
    Not an error: -100, -1 and 255, which losses are told to ignore; labels that the loop maps to others, which is why
    this is mostly a warning.
    """
    probe = _data(record)
    classes = probe["num_classes"]
    if not classes or classes < 2:
        raise NotSeenError("the number of logits is not known")
    made = _part(_part(probe, "labels"), "train")
    if not _is_classification(made):
        raise NotSeenError("the targets are not class numbers")
    counts = _counts(made)
    bad = {value: count for value, count in counts.items() if not 0 <= value < classes and value not in IGNORED_LABELS}
    in_batches = set(made["in_batches"])
    where = _where(probe["train"])
    if bad and not in_batches & set(bad):
        fits = in_batches and max(in_batches) == classes - 1 and min(in_batches) == 0
        yield Finding(
            status=Status.FAIL if fits and sum(bad.values()) < 0.01 * made["n"] else Status.WARN,
            measured=f"{plural(sum(bad.values()), 'label')} outside, such as {next(iter(bad))}",
            expected=f"0 to {classes - 1}",
            message=f"the training data has labels for which the {classes} logits have no place",
            location=where,
            hint="a hidden folder that counts as a class? labels that begin at 1?",
        )
    elif not bad and 0 not in counts and made["n"] >= 20 * classes and set(range(1, classes)) <= set(counts):
        yield Finding(
            measured=f"labels 1 to {classes - 1}, {classes} logits",
            expected="labels from 0",
            message="no training sample has label 0, every other class occurs: labels begin at 1?",
            location=where,
            hint="subtract 1 from the labels and give the model one logit less",
        )


@rule("DAT215", severity=Status.WARN, subject=Subject.RUN)
def class_missing(record: Record) -> Iterator[Finding]:
    """Training has no sample of a class that is evaluated.

    Why it matters: the network can never predict it, and the score is bounded by that.
    Found by: all labels of the training split against the labels of the evaluation. A class that has hardly any
    training sample counts too, where all others have the same share in both splits.
    Not an error: evaluation on new classes alone, as in metric learning; long-tailed training data.

    Wrong: `train = data[:40000]` of a file that is sorted by class
    Right: `train_test_split(..., stratify=labels)`
    """
    probe = _data(record)
    made = _part(probe, "labels")
    train = _part(made, "train")
    if not train["whole"]:
        raise NotSeenError("the labels of the whole training split could not be read")
    ours = _counts(train)
    for view, other in _judged(probe, made["evals"]):
        theirs = _counts(other)
        missing = [value for value, count in theirs.items() if value not in ours and count >= 2 and value >= 0]
        if not missing and _is_classification(other):
            yield from _nearly_missing(ours, theirs, view)
        if not missing or not _is_classification(other) or 2 * len(missing) > len(theirs):
            continue
        yield Finding(
            measured=f"{plural(len(missing), 'class')} without a training sample: {shortlist(map(str, missing))}"
            if len(missing) == 1
            else f"{len(missing)} classes without a training sample: {shortlist(map(str, missing))}",
            expected="every evaluated class in the training data",
            message="the evaluation asks for a class that training never shows",
            location=_where(view),
            hint="split at random, or stratified by class",
        )
        return


@rule("DAT213", severity=Status.WARN, subject=Subject.RUN)
def labels_unrelated(record: Record) -> Iterator[Finding]:
    """The labels of a split have nothing to do with its inputs.

    Why it matters: training on them is memorising; a score on them is chance.
    Found by: predicting each label from the nearest other sample. One split is predictable far beyond chance, the
    other one, with as many samples, not at all; or both are, and a fixed renaming of classes is needed between them.
    Or nothing predicts them at all: not the nearest sample by pixels, by frequencies or by colours, not a plane
    through the samples, within a split or from one to the other, and the network's answers in evaluation stay at
    chance too. The same for a target that is one number.
    Not an error: data that is too hard for the nearest neighbour in both splits, if the network learns something;
    inputs that are noise; partly noisy labels.

    Wrong: `images = sorted(glob(a)); labels = os.listdir(b)`; `targets = targets[torch.randperm(n)]`
    Right: shuffle images and labels with one permutation
    """
    probe = _data(record)
    if _measured(probe, "numbers"):
        yield from _numbers_unrelated(record, probe)
        return
    made = _part(probe, "learn")
    train, other = made["train"], made["eval"]
    comparable = train["n"] >= 0.7 * other["n"] and other["n"] >= 60
    measured = (
        f"nearest neighbour right for {train['accuracy']:.0%} in training (chance {train['chance']:.0%}), "
        f"{other['accuracy']:.0%} in evaluation (chance {other['chance']:.0%})"
    )
    if comparable and other["z"] > PREDICTABLE and train["z"] < CHANCE:
        yield Finding(
            measured=measured,
            expected="better than chance in both",
            message="the training labels look unrelated to the training inputs",
            location=_where(probe["train"]),
            hint="are inputs and labels read, sorted or shuffled separately?",
        )
        return
    if _nothing_predicts(made) and not _network_learns(record):
        yield Finding(
            measured=measured + "; nothing else predicts them, nor does the network in evaluation",
            expected="better than chance",
            message="the labels look unrelated to the inputs, in training and in evaluation",
            location=_where(probe["train"]),
            hint="are inputs and labels read, sorted or shuffled separately? look at a few samples with their labels",
        )
        return
    if "across" not in made or not made["same_labels"] or min(train["z"], other["z"]) < PREDICTABLE:
        return
    across, mapping = made["across"], made["mapping"]
    if across["z"] < CHANCE and mapping["z"] > PREDICTABLE and mapping["count"] >= 2:
        old, new = mapping["moved"][0]
        yield Finding(
            measured=f"across splits {across['accuracy']:.0%} as labelled, {mapping['accuracy']:.0%} after renaming",
            expected="one meaning of each label",
            message=f"training's class {old} looks like evaluation's class {new}",
            location=_where(probe["evals"][0]),
            hint="use one map from class names to numbers for all splits",
        )


def _nearly_missing(ours: dict[int, int], theirs: dict[int, int], view: Json) -> Iterator[Finding]:
    """One class that training hardly has, while every other one has about the share that the evaluation has."""
    total, other_total = sum(ours.values()), sum(theirs.values())
    expected = {value: count * total / other_total for value, count in theirs.items()}
    rare = [v for v, count in expected.items() if count >= 30 and theirs[v] >= 10 and ours[v] < count / 4]
    alike = [v for v in theirs if v not in rare and 0.6 < ours[v] / expected[v] < 1.7]
    if len(rare) == 1 and len(alike) == len(theirs) - 1 and len(theirs) >= 3:
        value = rare[0]
        yield Finding(
            measured=f"class {value}: {ours[value]} of {total:,} training samples, {theirs[value]} of {other_total:,} "
            "in evaluation",
            expected=f"about {expected[value]:.0f} in training",
            message="training has hardly any sample of a class that is evaluated",
            location=_where(view),
            hint="split at random, or stratified by class",
        )


def _measured(probe: Json, name: str) -> bool:
    part = probe.get(name)
    return isinstance(part, dict) and not part.get("skipped")


def _nothing_predicts(made: Json) -> bool:
    """Whether every way to predict a label fails, with so many samples of each class that one should not."""
    ways = [made["train"], made["eval"], made.get("across"), *made.get("other_ways", [])]
    enough = made["train"]["n"] >= max(LEAST_LABELLED, 20 * made["classes"]) and made["eval"]["n"] >= 60
    measured = len(ways) >= 7 and all(ways) and made.get("floating", False)
    return enough and measured and made["classes"] >= 2 and max(way["z"] for way in ways) < UNPREDICTABLE


def _network_learns(record: Record) -> bool:
    """Whether the network's answers beat chance in an evaluation; in training it may memorise what means nothing.

    So it is too when it had no time to show anything, or when its answers were not seen.
    """
    judged = [one for one in record.evaluations if one.accuracy is not None]
    if len(record.steps) < LEAST_STEPS or not judged:
        return True
    return any(_beats_chance(one.passes) for one in judged)


def _beats_chance(passes: list[Json]) -> bool:
    count = sum(event["n"] for event in passes)
    classes = max((event.get("shape") or [0, 2])[-1] for event in passes)
    chance = 1 / max(2, classes)
    return sum(event["correct"] for event in passes) > count * chance + 5 * (count * chance * (1 - chance)) ** 0.5


def _numbers_unrelated(record: Record, probe: Json) -> Iterator[Finding]:
    made = probe["numbers"]
    ways = [made["train"], made["plane"], *([made["across"]] if "across" in made else [])]
    if made["n"] < LEAST_NUMBERED or max(ways) >= UNPREDICTABLE or _loss_falls(record):
        return
    yield Finding(
        measured=f"rank correlation with the nearest sample's target {made['train']:+.1f} standard deviations from "
        f"chance, with a linear prediction {made['plane']:+.1f}",
        expected=f"more than {UNPREDICTABLE:g}",
        message="the targets look unrelated to the inputs",
        location=_where(probe["train"]),
        hint="are inputs and targets read, sorted or shuffled separately?",
    )


def _loss_falls(record: Record) -> bool:
    """Whether an evaluation's loss gets clearly lower than the split's first ones; also when it had no time to."""
    splits: dict[int | None, list[float]] = {}
    for one in record.evaluations:
        if one.loss is not None:
            splits.setdefault(one.loader, []).append(one.loss)
    judged = [losses for losses in splits.values() if len(losses) >= 3]
    fell = any(min(losses) < 0.85 * max(losses[:2]) for losses in judged)
    return fell or not judged or len(record.steps) < LEAST_STEPS


@rule("DAT222", subject=Subject.RUN)
def mask_left_behind(record: Record) -> Iterator[Finding]:
    """A picture is flipped or turned, its mask is not.

    Why it matters: half of the masks then lie over the wrong pixels; the network learns a blurred average, and the
    loss still falls.
    Found by: fetching training items under several seeds. Where a picture comes back flipped or turned, the mask must
    come back so too.
    Not an error: brighter, blurred or noisy pictures with the mask as it was; symmetric masks.

    Wrong: `image = hflip(image)` alone; a random transform for the picture and another call of it for the mask
    Right: `image, mask = hflip(image), hflip(mask)` for one draw; torchvision's v2 with `tv_tensors.Mask`
    """
    probe = _data(record)
    made = _part(probe, "masks")
    if not made["followed"] and not made["stayed"]:
        raise NotSeenError("no training picture was flipped or turned")
    if made["stayed"] < 3:
        yield Finding(status=Status.PASS, measured=f"{made['followed']} flipped pictures with their masks")
        return
    yield Finding(
        measured=f"{made['stayed']} of {made['stayed'] + made['followed']} masks stay where the picture is moved",
        expected="0",
        message=f"a picture that is {made['kind']} keeps the mask of the one that is not",
        location=_where(probe["train"]),
        hint="draw once, and apply the flip to picture and mask alike",
    )


@rule("DAT216", subject=Subject.RUN)
def eval_samples_dropped(record: Record) -> Iterator[Finding]:
    """The evaluation loader drops its last batch.

    Why it matters: the score leaves out samples, other ones for each batch size; published results were wrong by this.
    Found by: `drop_last=True` on a loader that is evaluated and whose samples are not a multiple of the batch size. For
    batches that are cut by hand: every evaluation ends with the last whole batch of a split that is larger.
    Not an error: `drop_last=True` in training.

    Wrong: `DataLoader(val, batch_size=128, drop_last=True)`
    Right: `DataLoader(val, batch_size=128)`
    References: PatchTST issue 7, Autoformer issue 104.
    """
    probe = _data(record)
    if not probe.get("evals"):
        raise NotSeenError(probe.get("skipped") or "no evaluation was seen")
    yield from _tail_left_out(record, probe)
    own = _sees_training_data(probe) if len(probe["evals"]) > 1 else set()
    for index, view in enumerate(probe["evals"]):
        size, batch = view["n"], view["batch_size"]
        dropped = size % batch if view["drop_last"] and size and batch else 0
        if index in own or view["is_train_loader"] or not view["evaluated"] or not dropped:
            continue
        yield Finding(
            measured=f"{plural(dropped, 'sample')} of {size:,} never evaluated",
            expected="0",
            message=f"drop_last=True with a batch size of {batch}",
            location=_where(view),
            hint="drop_last=False for evaluation",
        )
        return


def _tail_left_out(record: Record, probe: Json) -> Iterator[Finding]:
    """Evaluations of hand-cut batches, all of one size, that see all but the rest of a held split."""
    sizes = {view["n"]: view for view in probe["evals"] if view.get("hand_cut") and view["n"]}
    evaluations = [one for one in record.evaluations if one.loader is None and len(one.passes) >= 2]
    for size, view in sizes.items():
        ended = [one for one in evaluations if _is_cut(one.passes, size)]
        if len(ended) >= 2 and not any(one.samples in sizes for one in evaluations):
            yield Finding(
                measured=f"{plural(size - ended[0].samples, 'sample')} of {size:,} never evaluated",
                expected="0",
                message=f"the loop over batches of {ended[0].passes[0]['n']} ends with the last whole one",
                location=str(ended[0].passes[0].get("loc") or _where(view)),
                hint="for start in range(0, n, batch): the last slice may be shorter",
            )
            return


def _is_cut(passes: list[Json], size: int) -> bool:
    batch = {event["n"] for event in passes}
    width = next(iter(batch))
    return len(batch) == 1 and width > 0 and size % width > 0 and sum(e["n"] for e in passes) == size - size % width


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
    probe = _data(record)
    seen = _part(probe, "augmentation")
    items = _part(seen, "train")
    if not items["varying"]:
        active = list((probe.get("flags") or {}).get("active") or {})
        repeats = bool(active) or seen["run_changes_input"]
        if repeats and items["n"] >= SURE_ITEMS and not items["batch_varies"]:
            yield Finding(
                measured=f"{items['n']} of {items['n']} train items equal under {items['seeds']} seeds",
                expected="items that change with the seed",
                message=f"{shortlist(seen['run'] or active)} does the same to an item every time",
                location=_where(probe["train"]),
                hint="is a seed set in __getitem__?",
            )
        return
    if 2 * items["varying"] < items["n"]:
        raise NotSeenError("few items are random")
    for loader, epochs in _judged_orders(record):
        if _repeats(epochs, "inputs"):
            yield Finding(
                measured=f"batches equal bit for bit in each of {len(epochs)} epochs",
                expected="other draws every epoch",
                message="the augmentation draws the same numbers every epoch",
                location=str(loader.get("loc") or ""),
                hint="is a seed set within the epoch loop?",
            )
            return
