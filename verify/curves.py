"""What a watched run looks like: loss, learning rate and gradients over its steps, its batches, its timeline."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from verify.html import Picture, Section
from verify.report import plural, shortlist
from verify.trace.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, "Color Universal Design": told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY, PALE, LINE = "#59636e", "#eef1f4", "#e5e9ee"
SERIES = (BLUE, RED, GREEN, PURPLE)
EVALUATIONS = (ORANGE, PURPLE, GREEN)
DOTS_PER_INCH = 150
WIDTH = 9.0  # inches
SMOOTHED_FROM = 150  # steps
FEWEST_LAYERS, MOST_LAYERS = 8, 24
MOST_FILES = 4
MOST_DECAYS = 8
LOG_RATIO = 100.0  # a log scale shows more where the largest value is this many times the smallest
ROLES = ("train", "eval", "test")

Points = tuple[list[float], list[float]]
Totals = dict[float, list[float]]  # position -> sum of weighted values, sum of weights


@dataclass
class Story:
    """A record as series to draw. Positions are optimizer steps that were done; times are seconds.

    Args:
        train: loss function -> positions and values.
        eval: data that was evaluated on -> positions and means of one pass each.
        rates: (optimizer, parameter group) -> positions and learning rates.
        norms: positions and norms of all gradients together, before clipping.
        limit: the norm that gradients were clipped to.
        layers: position -> parameter or layer -> norm.
        epochs: position at which each training epoch began.
        fast_from: position from which steps were only counted.
        steps: optimizer steps.
        bars: (row, begin, end) of the passes over data.
        marks: (file, time, whether it was read) of checkpoints.
    """

    train: dict[str, Points] = field(default_factory=dict)
    eval: dict[str, Points] = field(default_factory=dict)
    rates: dict[tuple[int, int], Points] = field(default_factory=dict)
    norms: Points = field(default_factory=lambda: ([], []))
    limit: float | None = None
    layers: dict[float, dict[str, float]] = field(default_factory=dict)
    epochs: list[float] = field(default_factory=list)
    fast_from: float | None = None
    steps: int = 0
    bars: list[tuple[str, float, float]] = field(default_factory=list)
    marks: list[tuple[str, float, bool]] = field(default_factory=list)


def run_section(record: Record) -> Section:
    """The section of a page that shows a watched run; parts that the record does not hold are left out."""
    story = read_story(record)
    pictures = [*_curves(story), *_batches(record), *_timeline(story)]
    paragraphs = []
    if pictures:
        paragraphs.append(
            f"The run in time-lapse: epochs are cut to {_cut(record)}, so the curves show what the script does, not "
            "how good the model becomes."
        )
    else:
        paragraphs.append("The run took no step that could be drawn.")
    return Section(title="The run", paragraphs=paragraphs, facts=_facts(story), pictures=pictures)


def _cut(record: Record) -> str:
    batches = [event["train_batches"] for event in record.of("run") if event.get("train_batches")]
    return plural(batches[0], "batch", "batches") if batches else "a few batches"


# -- reading the record ------------------------------------------------------------------------------------------------


def read_story(record: Record) -> Story:
    """Series of a record; events and fields that are missing or of another kind leave gaps, never an error."""
    story = Story()
    _read_steps(record, story)
    _read_losses(record, story)
    _read_norms(record, story)
    _read_times(record, story)
    return story


def _read_steps(record: Record, story: Story) -> None:
    epoch = None
    for event in record.of("step"):
        story.steps += 1
        position = _number(event.get("n"), story.steps)
        for group, rate in enumerate(event.get("lrs") or []):
            key = (event.get("opt") or 0, group)
            _add(story.rates.setdefault(key, ([], [])), position, rate)
        _add(story.norms, position, event.get("grad_norm"))
        story.limit = _optional(event.get("clip")) or story.limit
        if event.get("fast") and story.fast_from is None:
            story.fast_from = position
        if event.get("epoch") is not None and event["epoch"] != epoch:
            epoch = event["epoch"]
            story.epochs.append(position - 1)


def _read_losses(record: Record, story: Story) -> None:
    """Losses of the same position are one point: accumulated micro-batches, or the batches of an evaluation."""
    trained: dict[str, Totals] = {}
    evaluated: dict[tuple[str, str], Totals] = {}
    for event, where, position in _losses(record):
        value, weight = _optional(event.get("value")), _number(event.get("n"), 1)
        name = str(event.get("fn") or "loss")
        if value is not None and where is None:
            _weigh(trained.setdefault(name, {}), position, value, weight)
        elif value is not None:
            _weigh(evaluated.setdefault((name, str(where)), {}), position, value, weight)
    story.train = {name: _means(totals) for name, totals in trained.items()}
    if not story.train:
        _read_backwards(record, story)
    names = [name for name, _ in evaluated]
    used = next((name for name in story.train if name in names), names[0] if names else "")
    story.eval = {where: _means(totals) for (name, where), totals in evaluated.items() if name == used}


def _losses(record: Record) -> Iterator[tuple[dict[str, Any], str | None, float]]:
    """Each loss, the data if it is an evaluation of some, and its position: a pass without a backward is one."""
    passes = {event["iteration"]: name for name, event in _named_passes(record) if not name.startswith("train")}
    where, done = None, 0.0
    for event in record.events:
        kind = event.get("kind")
        if kind == "step":
            done = _number(event.get("n"), done + 1)
        elif kind == "iter_begin":
            where = passes.get(event.get("iteration"))
        elif kind == "loss":
            position = _number(event.get("step"), done)
            looking = event["phase"] != "train" if event.get("phase") else where or not event.get("grad", True)
            yield (event, where or "eval", position) if looking else (event, None, position + 1)


def _weigh(totals: Totals, position: float, value: float, weight: float) -> None:
    total = totals.setdefault(position, [0.0, 0.0])
    total[0] += value * weight
    total[1] += weight


def _read_backwards(record: Record, story: Story) -> None:
    """Of a loss that is no function of torch's, the value that `backward` was called on."""
    totals: Totals = {}
    for event in record.of("backward"):
        value = _optional(event.get("value"))
        if value is not None:
            _weigh(totals, _number(event.get("step"), 0) + 1, value, 1)
    if totals:
        story.train["loss"] = _means(totals)


def _means(totals: Totals) -> Points:
    positions = sorted(totals)
    return positions, [totals[position][0] / (totals[position][1] or 1) for position in positions]


def _read_norms(record: Record, story: Story) -> None:
    for event in record.of("grad_norms"):
        norms = event.get("norms") or {}
        values = {str(name): _optional(norm) for name, norm in norms.items()}
        row = story.layers.setdefault(_number(event.get("step"), len(story.layers) + 1), {})
        row.update({name: value for name, value in values.items() if value is not None})
    if not story.norms[0]:
        for position, row in sorted(story.layers.items()):
            _add(story.norms, position, _together(row.values()))


def _read_times(record: Record, story: Story) -> None:
    for event in record.of("phase"):
        begin, end = _optional(event.get("begin")), _optional(event.get("end"))
        if begin is not None and end is not None:
            story.bars.append((str(event.get("phase") or "data"), begin, end))
    if not story.bars:
        story.bars = list(_passes(record))
    for event in record.of("save", "load"):
        at = _optional(event.get("t"))
        if at is not None:
            story.marks.append((PurePath(str(event.get("path") or "unnamed")).name, at, event["kind"] == "load"))


def _passes(record: Record) -> Iterator[tuple[str, float, float]]:
    begun = {event.get("iteration"): event for event in record.of("iter_begin")}
    for name, event in _named_passes(record):
        begin, end = _optional(begun.get(event["iteration"], {}).get("t")), _optional(event.get("t"))
        if begin is not None and end is not None:
            yield name, begin, end


def _named_passes(record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    """The passes over loaders on which a model ran, when they end; further loaders of a kind are numbered."""
    names: dict[tuple[Any, str], str] = {}
    for event in record.of("iter_end"):
        trained = bool(event.get("steps") or event.get("backwards"))
        if event.get("iteration") is None or not (trained or event.get("forwards")):
            continue
        role = "train" if trained else "eval"
        number = sum(kind == role for _, kind in names) + 1
        yield names.setdefault((event.get("loader"), role), role if number == 1 else f"{role} {number}"), event


def _optional(value: Any) -> float | None:
    """A number, which a record may also hold as text (`nan`, `inf`); None for anything else."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _number(value: Any, otherwise: float) -> float:
    number = _optional(value)
    return number if number is not None and math.isfinite(number) else float(otherwise)


def _add(points: Points, position: float, value: Any) -> None:
    number = _optional(value)
    if number is not None:
        points[0].append(position)
        points[1].append(number)


def _together(norms: Iterable[float]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms))


# -- facts -------------------------------------------------------------------------------------------------------------


def _facts(story: Story) -> dict[str, str]:
    facts = {}
    if story.steps:
        epochs = f" in {plural(len(story.epochs), 'epoch')}" if story.epochs else ""
        fast = f", only counted from step {story.fast_from:.0f} on" if story.fast_from is not None else ""
        facts["Optimizer"] = plural(story.steps, "step") + epochs + fast
    for name, (_, values) in list(story.train.items())[:1]:
        facts["Training loss"] = f"{_from_to(values)} ({name})"
    for _, values in list(story.eval.values())[:1]:
        facts["Evaluation loss"] = _from_to(values)
    rates = [values for _, values in story.rates.values() if values]
    if rates:
        facts["Learning rate"] = _from_to(rates[0]) if len(set(rates[0])) > 1 else f"{rates[0][0]:.3g} throughout"
    saved = Counter(name for name, _, is_read in story.marks if not is_read)
    if saved:
        facts["Checkpoints"] = shortlist((f"{name} {plural(n, 'time')}" for name, n in saved.items()), MOST_FILES)
    return facts


def _from_to(values: list[float]) -> str:
    """The means of the first and the last tenth."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "never finite"
    part = max(1, len(finite) // 10)
    first, last = sum(finite[:part]) / part, sum(finite[-part:]) / part
    rest = f", {len(values) - len(finite)} of {len(values)} not finite" if len(finite) < len(values) else ""
    return f"{first:.3g} at first, {last:.3g} at the end{rest}"


# -- curves over the steps ---------------------------------------------------------------------------------------------


def _curves(story: Story) -> Iterator[Picture]:
    panels: list[tuple[str, float]] = []
    if story.train or story.eval:
        panels.append(("loss", 2.5))
    if story.rates:
        panels.append(("learning rate", 1.6))
    if story.norms[0]:
        panels.append(("gradient norm", 1.8))
    groups = _layer_groups(story)
    if groups:
        panels.append(("gradient norm by layer", 0.9 + 0.19 * len(groups)))
    if not panels:
        return
    figure = _figure(sum(height for _, height in panels) + 0.5)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[height for _, height in panels])
    draw = {
        "loss": _draw_loss,
        "learning rate": _draw_rates,
        "gradient norm": _draw_norms,
        "gradient norm by layer": _draw_layers,
    }
    for (name, _), axis in zip(panels, axes[:, 0], strict=True):
        axis.set_title(name, fontsize=11, loc="left")
        _shade_fast(axis, story)
        draw[name](axis, story)
    _finish(axes[:, 0], story)
    facts = "; ".join(f"{name}: {value}" for name, value in _facts(story).items() if name != "Checkpoints")
    names = shortlist((name for name, _ in panels), len(panels))
    yield Picture(png=_png(figure), alt=f"Over the optimizer steps: {names}. {facts}.", caption=_caption(story))


def _caption(story: Story) -> str:
    parts = ["Steps of the shortened run, epoch by epoch."]
    if story.eval:
        parts.append("An evaluation point is the mean over one pass.")
    if _layer_groups(story):
        parts.append(
            f"By layer, from the input above to the output below, measured at {plural(len(story.layers), 'step')}: a "
            "row that fades has almost no gradient to learn from."
        )
    if story.fast_from is not None:
        parts.append(
            "Where the background is grey, steps were only counted, to see schedules and checkpoints to the end."
        )
    return " ".join(parts)


def _draw_loss(axis: Axes, story: Story) -> None:
    for color, (name, (positions, values)) in zip(SERIES, story.train.items(), strict=False):
        label = "training" if len(story.train) == 1 else f"training, {name}"
        if len(values) >= SMOOTHED_FROM:
            axis.plot(positions, values, color=color, alpha=0.3, linewidth=0.8)
            axis.plot(positions, _smooth(values), color=color, linewidth=1.8, label=label)
        else:
            axis.plot(positions, values, color=color, linewidth=1.5, label=label, **_dots(values))
    for color, (name, points) in zip(EVALUATIONS, story.eval.items(), strict=False):
        label = "evaluation" + name.removeprefix("eval")
        axis.plot(*points, color=color, linewidth=1.5, marker="o", markersize=3.5, label=label)
    series = [*story.train.values(), *story.eval.values()]
    _mark_not_finite(axis, series)
    _scale(axis, [value for _, values in series for value in values])
    axis.legend(frameon=False, fontsize=9, loc="upper right")


def _draw_rates(axis: Axes, story: Story) -> None:
    different: dict[tuple[float, ...], list[tuple[int, int]]] = {}
    for key, (_, values) in story.rates.items():
        different.setdefault(tuple(values), []).append(key)
    several = len({optimizer for optimizer, _ in story.rates}) > 1
    for color, keys in zip(SERIES, different.values(), strict=False):
        positions, values = story.rates[keys[0]]
        names = [f"optimizer {optimizer}, group {group}" if several else f"group {group}" for optimizer, group in keys]
        axis.plot(positions, values, color=color, linewidth=1.6, label=shortlist(names, 2), **_dots(values))
    if len(different) > 1:
        axis.legend(frameon=False, fontsize=9, loc="best")
    values = [value for _, series in story.rates.values() for value in series]
    values = [value for value in values if math.isfinite(value)] or [0.0]
    if len(set(values)) <= MOST_DECAYS:  # divided by ten now and then; a curve is read against zero
        _scale(axis, values, ratio=10)
    else:
        axis.set_ylim(min(0, *values), max(values) * 1.08 or 1)
    if axis.get_yscale() == "linear":
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))


def _draw_norms(axis: Axes, story: Story) -> None:
    positions, values = story.norms
    axis.plot(positions, values, color=BLUE, linewidth=1.2, **_dots(values))
    finite = [value for value in values if math.isfinite(value)]
    if story.limit and finite and story.limit < 3 * max(finite):
        axis.axhline(story.limit, color=RED, linewidth=1.2, linestyle="--", label=f"clipped above {story.limit:g}")
        axis.legend(frameon=False, fontsize=9, loc="best")
    _mark_not_finite(axis, [story.norms])
    _scale(axis, values)


def _draw_layers(axis: Axes, story: Story) -> None:
    """A row of colours a group of layers; norms that are zero or not finite have colours of their own."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch

    groups = _layer_groups(story)
    positions = sorted(story.layers)
    table = np.full((len(groups), len(positions)), np.nan)
    for column, position in enumerate(positions):
        row = story.layers[position]
        for line, members in enumerate(groups.values()):
            known = [row[name] for name in members if name in row]
            table[line, column] = _together(known) if known else np.nan
    absent = np.array([[not any(n in story.layers[p] for n in g) for p in positions] for g in groups.values()])
    edges = _edges(positions, story.steps)
    good = table[np.isfinite(table) & (table > 0)]
    handles = []
    if good.size:
        low, high = good.min(), good.max()
        norm = LogNorm(low, max(high, low * 1.01))
        mesh = axis.pcolormesh(
            edges, np.arange(len(groups) + 1), np.ma.masked_where(~(table > 0), table), cmap="cividis", norm=norm
        )
        axis.figure.colorbar(mesh, ax=axis, pad=0.012, aspect=max(8, 1.2 * len(groups)), fraction=0.05)
    for color, name, where in ((PURPLE, "zero", table == 0), (RED, "not finite", ~np.isfinite(table) & ~absent)):
        for line, column in zip(*np.nonzero(where), strict=True):
            axis.fill_between(edges[column : column + 2], line, line + 1, color=color, linewidth=0)
        if where.any():
            handles.append(Patch(color=color, label=name))
    if handles:
        axis.legend(handles=handles, frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axis.set_yticks(np.arange(len(groups)) + 0.5, list(groups), fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(groups), 0)


def _edges(positions: list[float], steps: int) -> list[float]:
    """Borders of columns that begin where something was measured and end at the next one, or with the run."""
    width = max(1.0, positions[-1] - positions[-2]) if len(positions) > 1 else 1.0
    return [position - 1 for position in positions] + [max(positions[-1], min(steps, positions[-1] - 1 + width))]


def _layer_groups(story: Story) -> dict[str, list[str]]:
    """Parameters by layer, in their order; by larger and larger parts of the model until there are few enough."""
    names = list(dict.fromkeys(name for row in story.layers.values() for name in row))
    if not names:
        return {}
    parts = [name.split(".") for name in names]
    while all(len(part) > 1 and not part[1].isdigit() for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]  # `module.` or `model.` in front of everything
    finer: dict[str, list[str]] = {}
    for depth in range(max(len(part) for part in parts), 0, -1):
        groups: dict[str, list[str]] = {}
        for name, part in zip(names, parts, strict=True):
            groups.setdefault(".".join(part[: min(depth, max(1, len(part) - 1))]), []).append(name)
        if len(groups) <= MOST_LAYERS and (len(groups) >= FEWEST_LAYERS or not finer):
            return groups
        if len(groups) <= MOST_LAYERS:
            break
        finer = groups
    return _merged(finer)


def _merged(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """Neighbours together, where one level of the model has too many parts and the next too few."""
    size = -(-len(groups) // MOST_LAYERS)
    names = list(groups)
    merged = {}
    for start in range(0, len(names), size):
        chunk = names[start : start + size]
        label = chunk[0] if len(chunk) == 1 else f"{chunk[0]} to {chunk[-1]}"
        merged[label] = [name for part in chunk for name in groups[part]]
    return merged


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average over about a fortieth of the run, corrected for its start."""
    keep = 1 - 1 / max(1.0, len(values) / 40)
    total = weight = 0.0
    result = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight if weight and math.isfinite(value) else math.nan)
    return result


def _dots(values: list[float]) -> dict[str, Any]:
    """A line of a few points shows each of them; a single point would show nothing without."""
    return {"marker": "o", "markersize": 3} if len(values) <= 30 else {}


def _mark_not_finite(axis: Axes, series: Iterable[Points]) -> None:
    bad = [p for positions, values in series for p, v in zip(positions, values, strict=True) if not math.isfinite(v)]
    if bad:
        axis.plot(
            bad,
            [0.04] * len(bad),
            transform=axis.get_xaxis_transform(),
            color=RED,
            marker="x",
            linestyle="none",
            label=f"not finite ({plural(len(bad), 'point')})",
        )
        axis.legend(frameon=False, fontsize=9, loc="upper right")


def _scale(axis: Axes, values: list[float], ratio: float = LOG_RATIO) -> None:
    """From zero where that still shows the curve; logarithmic where the values span decades."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return
    low, high = min(finite), max(finite)
    if low > 0 and high / low > ratio:
        axis.set_yscale("log")
    elif low >= 0:
        axis.set_ylim(0, high * 1.08 or 1)


def _shade_fast(axis: Axes, story: Story) -> None:
    if story.fast_from is not None:
        axis.axvspan(story.fast_from - 1, story.steps, color=PALE, zorder=0, linewidth=0)


def _finish(axes: Any, story: Story) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        _plain(axis)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("optimizer step")
    if story.steps:
        axes[-1].set_xlim(0, max(story.steps, 1) * 1.005)
    if len(story.epochs) > 1:
        every = -(-len(story.epochs) // 10)
        top = axes[0].secondary_xaxis("top")
        top.set_xticks(story.epochs[::every], [str(k + 1) for k in range(0, len(story.epochs), every)])
        top.tick_params(length=3, labelsize=8, colors=GREY)
        top.spines["top"].set_visible(False)
        top.set_xlabel("epoch", fontsize=8, color=GREY, loc="right")


# -- batches and timeline ----------------------------------------------------------------------------------------------


def _batches(record: Record) -> Iterator[Picture]:
    """The first batch of each role, side by side."""
    from matplotlib.image import imread

    images: dict[str, Any] = {}
    for event in record.of("batch_picture"):
        role = str(event.get("role") or "batch")
        try:
            image = imread(io.BytesIO(base64.b64decode(event.get("png_base64") or "", validate=True)))
        except (binascii.Error, ValueError, OSError, SyntaxError):
            continue
        images.setdefault(role, image)
    roles = [role for role in ROLES if role in images] + [role for role in images if role not in ROLES]
    if not roles:
        return
    width = WIDTH / 2
    tallest = max(images[role].shape[0] / images[role].shape[1] for role in roles)
    figure = _figure(min(tallest * width, 7.0) + 0.25, width * len(roles))
    for axis, role in zip(figure.subplots(1, len(roles), squeeze=False)[0], roles, strict=True):
        axis.imshow(images[role], interpolation="nearest", aspect="equal")
        axis.set_title(role, fontsize=11, loc="left")
        axis.set_axis_off()
    yield Picture(
        png=_png(figure),
        alt=f"Images of the first batch: {', '.join(roles)}.",
        caption="The first batch as the model receives it, each image stretched to the full range of brightness. "
        "Mangled, repeated or wrongly coloured images show here.",
    )


def _timeline(story: Story) -> Iterator[Picture]:
    """When the run went over which data, and when it wrote and read checkpoints."""
    if not story.bars:
        return
    rows = list(dict.fromkeys([name for name in ROLES if any(bar[0] == name for bar in story.bars)]))
    rows += [name for name in dict.fromkeys(bar[0] for bar in story.bars) if name not in rows]
    files = list(dict.fromkeys(name for name, _, _ in story.marks))[:MOST_FILES]
    figure = _figure(0.75 + 0.32 * (len(rows) + len(files)))
    axis = figure.subplots()
    start = min(begin for _, begin, _ in story.bars)
    end = max(end for _, _, end in story.bars)
    for line, name in enumerate(rows):
        spans = [
            (begin - start, max(finish - begin, (end - start) / 1000))
            for row, begin, finish in story.bars
            if row == name
        ]
        color = BLUE if name.startswith("train") else ORANGE if name.startswith("eval") else GREEN
        axis.broken_barh(spans, (line + 0.18, 0.64), color=color, linewidth=0)
    for line, name in enumerate(files, len(rows)):
        for is_read, marker, color in ((False, "v", GREY), (True, "^", RED)):
            times = [at - start for file, at, read in story.marks if file == name and read is is_read]
            axis.plot(times, [line + 0.5] * len(times), marker, color=color, markersize=5, markeredgewidth=0)
    for is_read, marker, color, label in ((False, "v", GREY, "written"), (True, "^", RED, "read")):
        if any(read is is_read and file in files for file, _, read in story.marks):
            axis.plot([], [], marker, color=color, markersize=5, markeredgewidth=0, label=label)
    if files:
        axis.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axis.set_title("timeline", fontsize=11, loc="left")
    axis.set_yticks([line + 0.5 for line in range(len(rows) + len(files))], rows + files, fontsize=9)
    axis.set_ylim(len(rows) + len(files), 0)
    axis.set_xlabel("seconds")
    axis.tick_params(axis="y", length=0)
    _plain(axis, grid="x")
    counts = ", ".join(
        f"{plural(sum(bar[0] == name for bar in story.bars), 'pass', 'passes')} over {name}" for name in rows
    )
    yield Picture(
        png=_png(figure),
        alt=f"Timeline: {counts}; checkpoints {shortlist(files, MOST_FILES) if files else 'none'}.",
        caption="Each bar is one pass over a loader" + (", each triangle a checkpoint." if files else "."),
    )


# -- drawing -----------------------------------------------------------------------------------------------------------


def _figure(height: float, width: float = WIDTH) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _plain(axis: Axes, grid: Literal["x", "y"] = "y") -> None:
    if not axis.collections or grid == "x":
        axis.grid(axis=grid, color=LINE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    """The figure as a PNG; `Figure` without pyplot draws with Agg and needs no display."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()
