"""MOD: layers that one layer could replace, tables and codes of places, norms and branches asked by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verify.report import Finding, Status, plural, shortlist
from verify.rules import rule

if TYPE_CHECKING:
    from torch import Tensor, nn

    from verify.probe import ModelProbe

MOST_DROPPED = 0.7
SINGLE_PIXEL_LAYERS = 3
FEWEST_SCALES, OTHER_SIGN = 8, 0.2


@rule("MOD141", severity=Status.WARN)
def layers_collapse(probe: ModelProbe) -> Iterator[Finding]:
    """Two layers follow each other with nothing nonlinear between them.

    Why it matters: together they compute what one layer could: the parameters and the time of the second are wasted,
    and the network is less deep than it looks. Most often an activation is missing.
    Found by: following what each linear layer and convolution makes in eval mode, through views, copies, batch norms,
    scales and shifts, to the one operation that reads it: another layer of the same kind, where the features between
    them are as many as at one of the two ends.
    Not an error: a product of low rank; a layer over tokens before one over features; grouped, depthwise, dilated and
    1xn convolutions; a projection that is expanded by the next block (MobileNetV2); pooling in between; what is also
    added to a skip, read twice or returned.

    Wrong: `nn.Sequential(nn.Linear(512, 256), nn.Dropout(), nn.Linear(256, 10))`
    Right: `nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10))`
    """
    found = probe.dataflow.collapsing
    if found:
        first, second = found[0]
        widths = f"{first.before} -> {first.after} -> {second.after}"
        yield Finding(
            measured=f"{plural(len(found), 'pair')} of layers, the first {widths}",
            expected="a nonlinearity between them",
            message="nothing nonlinear between two layers, so that one could replace them",
            location=shortlist(f"{a.module} and {b.module}" for a, b in found),
            hint="an activation after the first, or one layer for both",
        )


@rule("MOD142", severity=Status.WARN)
def table_unreached(probe: ModelProbe) -> Iterator[Finding]:
    """Rows of a table of relative positions are reached by no pair of places.

    Why it matters: the index that was to tell displacements apart gives several of them the same row, so attention
    cannot tell a step down from a step to the right.
    Found by: a learned table with one row for each displacement within a map of h x w places, (2h - 1)(2w - 1) of them,
    and an index of fixed numbers for all pairs of places, which together must reach every row.
    Not an error: tables for larger maps or longer distances than there are; up to three rows more, for class tokens.

    Wrong: `index = dy + dx` with `dy, dx` from 0 to 2h - 2 and 2w - 2
    Right: `index = dy * (2 * w - 1) + dx`
    References: Liu et al. 2021, "Swin Transformer", section 3.2.
    """
    found = probe.dataflow.sparse_tables
    if found:
        yield Finding(
            measured=f"{found[0].reached} of {found[0].rows} rows are reached",
            expected=f"{found[0].rows}",
            message="different displacements share a row of the table",
            location=shortlist(one.name for one in found),
            hint="index = dy * (2 * w - 1) + dx, with dy and dx shifted to begin at 0",
        )


@rule("MOD143", severity=Status.WARN)
def places_alike(probe: ModelProbe) -> Iterator[Finding]:
    """Different places of the picture get the same position code.

    Why it matters: attention treats tokens that share a code as a set: it cannot know where in the picture they were.
    Found by: a picture of one colour, whose tokens differ by their codes alone when they enter the first block: codes
    that equally many places share. Tables made for exactly these tokens: learned ones of which the logits depend on
    less than half of the rows, fixed ones of which two fifths of the features or more are 0 at every place.
    Not an error: no codes at all; codes that come later, relative or rotary; stems that see the border of the picture.

    Wrong: `torch.cat((x.sin(), x.cos(), x.sin(), x.cos()), dim=1)`; `tokens + self.position[:, :1]`;
    `table[:, 0::2] = sin; table[:, 0::2] = cos`
    Right: `torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1)`; `tokens + self.position`;
    `table[:, 0::2] = sin; table[:, 1::2] = cos`
    """
    if probe.behaviour.reason_unseen:
        yield Finding(status=Status.SKIP, message=probe.behaviour.reason_unseen)
        return
    shared, unread, empty = probe.behaviour.shared_codes, probe.behaviour.unread_rows, probe.behaviour.empty_columns
    if shared:
        yield Finding(
            measured=f"{shared.distinct} codes for {shared.tokens} places",
            expected="a code for each place",
            message="places share their position code",
            location=probe.describe(probe.model, shared.block),
            hint="one half of the features for the row, the other for the column",
        )
    if unread:
        name, rows, read = unread[0]
        yield Finding(
            measured=f"the logits depend on {read} of {rows} rows",
            expected="a row for each token",
            message="most of a table of positions is never read",
            location=name,
            hint="add the whole table: tokens + self.position",
        )
    if empty:
        name, features, zeros = empty[0]
        yield Finding(
            measured=f"{zeros} of {features} features are 0 at every place",
            expected="sines and cosines side by side",
            message="a part of a fixed table of positions was never filled",
            location=name,
            hint="table[:, 0::2] = sin; table[:, 1::2] = cos",
        )


@rule("MOD144", severity=Status.WARN)
def divided_by_variance(probe: ModelProbe) -> Iterator[Finding]:
    """A norm written by hand divides by the variance instead of its root.

    Why it matters: what it returns is not of unit size but the smaller the larger its input is; features that grow
    vanish behind it, and small ones explode.
    Found by: modules that are no layers of torch.nn, have parameters and no others within: given random numbers and
    four times as much, a norm returns the same, and this one a quarter.
    Not an error: anything else that a module does to its scale.

    Wrong: `(x - mean) / (variance + eps)`
    Right: `(x - mean) / torch.sqrt(variance + eps)`
    """
    found = probe.behaviour.inverse_norms
    if found:
        yield Finding(
            measured="a quarter of the output for four times the input",
            expected="the same output",
            message="the input is divided by its variance, not by its standard deviation",
            location=shortlist(probe.describe(probe.model, name) for name in found),
            hint="torch.sqrt(variance + eps), or F.layer_norm",
        )


@rule("MOD145", severity=Status.WARN)
def branches_dropped(probe: ModelProbe) -> Iterator[Finding]:
    """Stochastic depth drops nearly all of the branches.

    Why it matters: the rate to drop was taken for the rate to keep: most blocks are hardly ever trained, and what is
    left of them is scaled up many times.
    Found by: modules without parameters that hand ones through in eval mode and in train mode set whole samples to
    zero: more than 0.7 of them.
    Not an error: rates as they are used, up to 0.5 or 0.6; dropout of single values.

    Wrong: `mask = torch.rand(n, 1, 1) < self.drop_prob; return x / self.drop_prob * mask`
    Right: `keep = 1 - self.drop_prob; mask = torch.rand(n, 1, 1) < keep; return x / keep * mask`
    References: Huang et al. 2016, "Deep Networks with Stochastic Depth".
    """
    found = [(name, share) for name, share in probe.behaviour.dropped_branches if share > MOST_DROPPED]
    if found:
        yield Finding(
            measured=f"{found[0][1]:.0%} of the samples",
            expected="up to half of them",
            message="the branch is dropped nearly always in train mode",
            location=shortlist(probe.describe(probe.model, name) for name, _ in found),
            hint="keep with the probability 1 - drop_prob",
        )


@rule("MOD146", severity=Status.WARN)
def maps_of_one_pixel(probe: ModelProbe) -> Iterator[Finding]:
    """Convolutions run over feature maps of a single pixel.

    Why it matters: all that a kernel of 3x3 sees of 1x1 pixels is its middle, and padding around it: eight ninths of
    its weights are never used. The network shrinks its maps too early or too often.
    Found by: the sides of what convolutions wider than 1x1 receive, three or more of them 1x1.
    Not an error: one or two at the end; 1x1 convolutions after a global pooling; stems for large pictures, which MOD125
    reports.

    Wrong: `nn.Sequential(*[Block(c, c, stride=2) for _ in range(n)])`
    Right: `nn.Sequential(*[Block(c, c, stride=2 if i == 0 else 1) for i in range(n)])`
    """
    if len(probe.input_size) != 3 or min(probe.input_size[1:]) < 2:
        yield Finding(status=Status.SKIP, message="only for pictures")
        return
    if probe.coarse_stem is not None:
        return
    single = sum(kind == "convolution" and before == 1 for kind, before, _ in probe.dataflow.sides)
    if single >= SINGLE_PIXEL_LAYERS:
        yield Finding(
            measured=f"{plural(single, 'convolution')} of 1x1 pixels",
            expected="maps with something to look at",
            message="the feature maps are a single pixel before the last convolutions",
            location=probe.describe(probe.model, ""),
            hint="one stride of 2 a stage, and fewer stages for small pictures",
        )


@rule("MOD148")
def norm_scales_random(probe: ModelProbe) -> Iterator[Finding]:
    """The scales of a norm layer start as random numbers around zero.

    Why it matters: a loop that initialises every parameter takes the scales of the norms along. Each channel is then
    shrunk and every other one turned over, in layer after layer; training starts with next to no signal.
    Found by: the scales of new models: a fifth or more of either sign, and other numbers in the next build.
    Not an error: ones; zeros, as at the end of a residual branch; scales drawn around one, as GANs do it; weights that
    were trained before.

    Wrong: `for p in self.parameters(): nn.init.normal_(p, std=0.02)`
    Right: `for m in self.modules(): if isinstance(m, (nn.Conv2d, nn.Linear)): nn.init.normal_(m.weight, std=0.02)`
    """
    suspects = _scales_of_both_signs(probe.model)
    drawn = _drawn_anew(probe, suspects) if suspects else []
    if drawn:
        scales = suspects[drawn[0]]
        yield Finding(
            measured=f"{len(drawn)} of {len(_norm_scales(probe.model))} norms; the first: mean {scales.mean():.2g}, "
            f"standard deviation {scales.std():.2g}",
            expected="1 everywhere, or 0 where a branch ends",
            message="the scales of norm layers were drawn at random around zero",
            location=shortlist(drawn),
            hint="initialise convolutions and linear layers by their type, and leave norms as they are",
        )


def _norm_scales(model: nn.Module) -> dict[str, Tensor]:
    """The learned scales of the layers that torch or their author calls a norm, by name."""
    named = {name: m for name, m in model.named_modules() if type(m).__name__.rstrip("123d").endswith("Norm")}
    scales = {name: m.weight.detach() for name, m in named.items() if hasattr(getattr(m, "weight", None), "detach")}
    return {name: weight for name, weight in scales.items() if weight.ndim == 1 and len(weight) >= FEWEST_SCALES}


def _scales_of_both_signs(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: scales
        for name, scales in _norm_scales(model).items()
        if min((scales < 0).float().mean(), (scales > 0).float().mean()) >= OTHER_SIGN
    }


def _drawn_anew(probe: ModelProbe, suspects: dict[str, Tensor]) -> list[str]:
    """Of scales with both signs, those that two new builds do not agree on."""
    one, other = (_scales_of_both_signs(probe.build(seed)) for seed in (1, 2))
    return [name for name in suspects if name in one and name in other and (one[name] != other[name]).any()]
