"""Follows the tokens of a vision model from the picture to the logits: which ones mix, and which ones are read.

A model is looked at through its modules only: what each received and returned in one forward pass, and the gradients
between them. So it does not matter how the tokens were made, or by what they are mixed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

SEED = 12_000_000
# Zero-initialised heads and branches hide everything; a little noise on the parameters of a copy uncovers it.
NOISE = 0.02
# A prime, so that no two rows of a matrix get the same.
DIFFERENT_NUMBERS = 65_537
FEWEST_TOKENS = 4
# Below it, the window of a token is a large part of the picture anyway.
FEWEST_PLACED = 9
LOOKED_AT, ELEMENTS, FEWEST_ELEMENTS = 4, 16, 4
STRIPS_LOOKED_AT = 6
# So many elements of a token that come from the same window say that all do.
ALIKE_ELEMENTS = 6
# A token is a window: its bounding box is not mostly holes, and not far wider than high.
LARGEST_HOLES, LARGEST_ASPECT = 2.0, 4.0
# Of the picture: what the elements of a scattered token cover together; of that: what each of them does alone.
SCATTERED_UNION, SCATTERED_ELEMENT = 0.25, 0.25
LATE_OUTPUTS = 8
# For asking single elements where they come from, one backward pass each.
SECONDS = 4.0


@dataclass(eq=False)
class Seen:
    """One call of a module: the first tensor that it received and the first that it returned.

    `version` is that of the received tensor's memory then; if it has changed at the end, the tensor was overwritten.
    """

    name: str
    module: nn.Module
    given: Tensor | None
    version: int
    entered: int
    made: Tensor | None = None
    left: int = 0

    @property
    def is_intact(self) -> bool:
        """Whether what it received still is what it received."""
        return self.given is not None and self.given._version == self.version


@dataclass(frozen=True, kw_only=True)
class TokenFlow:
    """What became of the tokens.

    Attributes:
        first: name of the first module that receives the sequence, whole.
        last: name of the last module that returns it.
        tokens: N, its length.
        unseen: tokens that enter as the same numbers whatever the picture is: learned ones.
        read: tokens of the last sequence that the logits depend on.
        reach: for a few tokens of the last sequence, the tokens of the first that each of them depends on.
        blocks: how often the most frequent class of composite module maps the sequence to itself.
        is_local: whether each token that was asked stands for less than half of the picture.
    """

    first: str
    last: str
    tokens: int
    unseen: frozenset[int]
    read: frozenset[int]
    reach: dict[int, frozenset[int]] = field(default_factory=dict)
    blocks: int = 0
    is_local: bool = False


@torch.no_grad()
def with_noise(model: nn.Module, only: Collection[str] | None = None) -> nn.Module:
    """The model itself, in eval mode, with noise on its parameters, or on those of these names."""
    generator = torch.Generator().manual_seed(SEED)
    for name, p in model.named_parameters():
        if p.is_floating_point() and (only is None or name in only):
            p.add_(_noise(p.numel(), generator).to(p).view_as(p))
    return model.eval()


def _noise(count: int, generator: torch.Generator) -> Tensor:
    """(count,) normal numbers, which repeat after a while: to draw them takes longer than a pass of a large model."""
    drawn = NOISE * torch.randn(min(count, DIFFERENT_NUMBERS), generator=generator)
    return drawn.repeat(math.ceil(count / DIFFERENT_NUMBERS))[:count] if count > DIFFERENT_NUMBERS else drawn


class _ReceivedError(Exception):
    """Ends a pass of which the rest is not needed."""


def received(model: nn.Module, name: str, x: Tensor) -> Tensor | None:
    """The first tensor that the module called `name` is given in a pass over `x`, which ends there."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.extend(a for a in [*args, *kwargs.values()] if isinstance(a, Tensor))
        raise _ReceivedError

    handle = model.get_submodule(name).register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(x)
    except _ReceivedError:
        pass
    finally:
        handle.remove()
    return caught[0] if caught else None


class Pass:
    """One forward pass with its graph: of an uncovered copy on two different images.

    Args:
        model: in eval mode.
        x: (2, C, H, W).
        logits_of: finds the logits (2, classes) in what the model returns.
    """

    def __init__(self, model: nn.Module, x: Tensor, logits_of: Callable[[Any], Tensor]) -> None:
        self.model = model
        self.x = x.detach().clone().requires_grad_()
        self.calls: list[Seen] = []
        self.time = 0
        self.deadline = 0.0
        self.all_read = 0  # N of the sequence whose every token the logits are known to depend on
        handles = []
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for name, module in model.named_modules():
                if name:
                    handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                    handles.append(module.register_forward_hook(self._leave))
            with torch.enable_grad():
                self.output = model(self.x * 1)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for handle in handles:
                handle.remove()
        self.logits = logits_of(self.output)
        self.generator = torch.Generator().manual_seed(SEED + 1)

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next((a for a in [*args, *kwargs.values()] if isinstance(a, Tensor)), None)
            self.time += 1
            self.calls.append(Seen(name, module, given, given._version if given is not None else 0, self.time))

        return hook

    def _leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        self.time += 1
        for call in reversed(self.calls):
            if call.module is module and not call.left:
                call.left, call.made = self.time, _first_tensor(output)
                return

    def gradient(self, of: Tensor, by: Tensor) -> Tensor | None:
        """The gradient of a random weighting of `of`; None where there is no path."""
        if not of.requires_grad or not by.requires_grad:
            return None
        weights = torch.randn(of.shape, generator=self.generator).to(of)
        (found,) = torch.autograd.grad((of * weights).sum(), by, retain_graph=True, allow_unused=True)
        return found

    # -- sequences -------------------------------------------------------------------------------------------------

    def _sequences(self) -> list[Seen]:
        return [c for c in self.calls if c.left and _is_sequence(c, len(self.x))]

    def _last(self) -> tuple[Seen, Tensor] | None:
        """The last call that returns a sequence which the logits depend on, and their gradient."""
        for call in sorted(self._sequences(), key=lambda c: -c.left)[:LATE_OUTPUTS]:
            assert call.made is not None
            gradient = self.gradient(self.logits[0], call.made)
            if gradient is not None and bool(gradient[0].any()):
                return call, gradient
        return None

    def tokens(self, *, few: bool = False) -> TokenFlow | None:
        """What becomes of the tokens; None where there are none, or where it cannot be told.

        Args:
            few: ask only one token what it depends on, if that leaves no doubt about the others.
        """
        last = self._last()
        if last is None or last[0].made is None:
            return None
        end, gradient = last
        made = end.made
        assert made is not None
        count = made.shape[1]
        starts = [c for c in self._sequences() if c.given is not None and c.given.shape[1] == count]
        start = min(starts, key=lambda c: c.entered, default=None)
        if start is None or not start.is_intact or start.given is None:
            return None
        given = start.given
        if not given.requires_grad:
            return None
        read = frozenset(rows_with_numbers(gradient[0]))
        unseen = frozenset(rows_with_numbers(given.detach()[0] - given.detach()[1], zero=True))
        first = min(read)
        asked = [first, *sorted({0, count // 3, 2 * count // 3, count - 1} - {first})]
        reach: dict[int, frozenset[int]] = {}
        for token in asked:
            if few and reach and first < count - 1 and _is_clear(reach[first], count, read, unseen):
                self.all_read = count
                break
            found = self.gradient(made[0, token], given)
            if found is None or not found.isfinite().all():
                return None
            reach[token] = frozenset(rows_with_numbers(found[0]))
        composite = [
            type(c.module)
            for c in starts
            if next(c.module.children(), None) is not None and not isinstance(c.module, nn.Sequential | nn.ModuleList)
        ]
        windows = [self._window(given[0, token]) for token in reach if token not in unseen]
        return TokenFlow(
            first=start.name,
            last=end.name,
            tokens=count,
            unseen=unseen,
            read=read,
            reach=reach,
            blocks=max((composite.count(kind) for kind in composite), default=0),
            is_local=bool(windows) and all(w is not None and w.share < 0.5 for w in windows),
        )

    def corner_read(self) -> tuple[str, tuple[int, int], tuple[int, int]] | None:
        """(module, place, (H, W)) if the logits depend on a single corner of the last feature map (B, C, H, W) or
        (B, H, W, C); else None."""
        maps = [c for c in self.calls if c.left and c.made is not None and c.made.dim() == 4]
        end = max(maps, key=lambda c: c.left, default=None)
        if end is None or end.made is None or end.made.shape[0] != len(self.x):
            return None
        if any(c.left > end.left for c in self._sequences()):
            return None  # a patch embedding; what is read is a sequence
        gradient = self.gradient(self.logits[0], end.made)
        if gradient is None:
            return None
        for axes, channels in (((1, 2), 0), ((0, 1), 2)):
            height, width = (gradient[0].shape[a] for a in axes)
            if min(height, width) < 2:
                continue
            places = gradient[0].abs().sum(channels).nonzero().tolist()
            if len(places) == 1 and places[0][0] in (0, height - 1) and places[0][1] in (0, width - 1):
                return end.name, (places[0][0], places[0][1]), (height, width)
        return None

    # -- where tokens come from ------------------------------------------------------------------------------------

    def _window(self, of: Tensor) -> _Window | None:
        gradient = self.gradient(of, self.x)
        if gradient is None or not bool(gradient[0].any()):
            return None
        return _Window.around(gradient[0].abs() > 0)

    def first_block(self) -> Seen | None:
        """The first module with others within that receives the tokens of the pictures."""
        blocks = [
            c
            for c in self._sequences()
            if next(c.module.children(), None) is not None
            and c.given is not None
            and c.given.shape[1] >= FEWEST_PLACED
            and c.given.requires_grad
        ]
        first = min(blocks, key=lambda c: c.entered, default=None)
        return first if first is not None and first.is_intact else None

    def scattered(self, attends: Iterable[str]) -> tuple[str, str] | None:
        """(module, what its tokens are) if the tokens that enter the first block are no windows of the picture; else
        None.

        Args:
            attends: names of modules in which tokens attend to each other, so that their axis is known.
        """
        block = self.first_block()
        if block is None or block.given is None or self.x.dim() != 4:
            return None
        sequence = block.given[0]
        unseen = rows_with_numbers(block.given.detach()[0] - block.given.detach()[1], zero=True)
        tokens = [t for t in range(len(sequence)) if t not in unseen]
        if len(tokens) < FEWEST_PLACED:
            return None
        strips: list[_Window] = []
        for window in (self._window(sequence[t]) for t in _spread(tokens, STRIPS_LOOKED_AT)):
            if window is not None:
                strips.append(window)
            if sum(not w.has_holes and not w.is_strip for w in strips) >= STRIPS_LOOKED_AT / 2:
                break  # whatever the others are
        if strips and sum(w.has_holes for w in strips) > len(strips) / 2:
            return block.name, "pixels that lie far apart"
        if strips and all(w.is_strip for w in strips) and len({w.channels for w in strips}) > 1:
            return block.name, "a part of some rows of one channel"
        if block.name not in attends:
            return None
        self.deadline = time.monotonic() + SECONDS
        verdicts = (self._is_scattered(sequence[t]) for t in _spread(tokens, LOOKED_AT + 2)[1:-1])
        told = False
        for verdict in verdicts:
            if verdict is False:
                return None
            told = told or verdict is True
        return (block.name, "features from places that lie far apart") if told else None

    def _is_scattered(self, token: Tensor) -> bool | None:
        """Whether elements of a token come from windows that do not touch, and together from much of the picture; None
        where too few of them depend on it."""
        asked = _spread(range(len(token)), ELEMENTS)
        tried = (self._window(token[d]) for d in asked if time.monotonic() < self.deadline)
        windows: list[_Window] = []
        for window in tried:
            if window is not None:  # none behind a ReLU that is at rest
                windows.append(window)
            if len(windows) == ALIKE_ELEMENTS and all(w == windows[0] for w in windows):
                return False
        if len(windows) < FEWEST_ELEMENTS:
            return None
        if all(w.touched == 1 for w in windows):
            return False  # pixels as they are; the window of the whole token has been looked at
        apart = any(not a.touches(b) for a in windows for b in windows)
        rows = [w.rows for w in windows]
        columns = [w.columns for w in windows]
        height = max(b for _, b in rows) - min(a for a, _ in rows) + 1
        width = max(b for _, b in columns) - min(a for a, _ in columns) + 1
        union = height * width
        largest = max(w.area for w in windows)
        picture = self.x.shape[2] * self.x.shape[3]
        return apart and union >= SCATTERED_UNION * picture and largest <= SCATTERED_ELEMENT * union


@dataclass(frozen=True)
class _Window:
    """What part of a picture something depends on: bounding box, and how many pixels of it."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    touched: int
    channels: frozenset[int]
    size: tuple[int, int, int]

    @classmethod
    def around(cls, mask: Tensor) -> _Window:
        """The window of a mask (C, H, W) that is not empty."""
        places = mask.any(0).nonzero()
        low, high = places.min(0).values.tolist(), places.max(0).values.tolist()
        channels = frozenset(mask.flatten(1).any(1).nonzero()[:, 0].tolist())
        sizes = (mask.shape[0], mask.shape[1], mask.shape[2])
        return cls((low[0], high[0]), (low[1], high[1]), len(places), channels, sizes)

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def height(self) -> int:
        return self.rows[1] - self.rows[0] + 1

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0] + 1

    @property
    def share(self) -> float:
        """Of the picture."""
        return self.area / (self.size[1] * self.size[2])

    @property
    def has_holes(self) -> bool:
        return self.area > LARGEST_HOLES * self.touched

    @property
    def is_strip(self) -> bool:
        """Some rows of some channels only, and not one whole row."""
        part = self.touched != self.size[2]
        wide = self.width >= LARGEST_ASPECT * self.height
        return len(self.channels) < self.size[0] and part and wide

    def touches(self, other: _Window) -> bool:
        """Whether the boxes overlap or lie side by side."""
        return all(
            a[0] <= b[1] + 1 and b[0] <= a[1] + 1 for a, b in ((self.rows, other.rows), (self.columns, other.columns))
        )


def _is_clear(reach: frozenset[int], count: int, read: frozenset[int], unseen: frozenset[int]) -> bool:
    """Whether a token that depends on `reach` says enough: all tokens mix, in both directions, and the one that is read
    is none that might be the wrong one."""
    is_one_patch = len(read) == 1 and bool(unseen) and not read & unseen
    return len(reach) == count and not is_one_patch


def _is_sequence(call: Seen, batch: int) -> bool:
    given, made = call.given, call.made
    if given is None or made is None or not given.is_floating_point() or not made.is_floating_point():
        return False
    if given.dim() != 3 or made.dim() != 3 or given.shape[:2] != made.shape[:2]:
        return False
    return given.shape[0] == batch and given.shape[1] >= FEWEST_TOKENS


def rows_with_numbers(values: Tensor, *, zero: bool = False, at_most: int | None = None) -> set[int]:
    """Rows of (N, D) that have a number other than zero, or that have none."""
    found = values.abs().sum(-1) > 0
    rows: list[int] = (~found if zero else found).nonzero()[:, 0].tolist()
    return set(rows[:at_most])


def _spread(values: Iterable[int], count: int) -> list[int]:
    values = list(values)
    places = torch.linspace(0, len(values) - 1, min(count, len(values))).long().tolist()
    return [values[p] for p in places]


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None
