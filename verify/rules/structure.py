"""SPC: whether a model is inside what `expect:` in verify.yaml says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verify.report import Finding, Status, plural, shortlist
from verify.rules import rule

if TYPE_CHECKING:
    from verify.attention import Attention
    from verify.probe import ModelProbe
    from verify.spec import ExpectSpec


def _expect(probe: ModelProbe) -> ExpectSpec:
    assert probe.spec.expect is not None
    return probe.spec.expect


def _nothing_fits(pattern: str) -> Finding:
    return Finding(
        measured="0 modules",
        expected=f"modules called {pattern}",
        message="no module has a name that fits",
        hint="`kit verify --summary` lists the modules; `*` stands for one part between dots, `**` for several",
    )


def _shown(shape: tuple[int, ...] | list[str | int]) -> str:
    return f"({', '.join(map(str, shape))})"


@rule("SPC091", asked="expect.shapes")
def shape_as_asked(probe: ModelProbe) -> Iterator[Finding]:
    """A module does not return the shape that was asked for.

    Why it matters: a stride too many, or tokens and features exchanged, may still end in logits of the right shape.
    Found by: the first output of every module with this name, at batch 2, on the meta device where that works;
    `expect: shapes: {layer1: [B, 16, 32, 32], "blocks.*": [B, 197, 768]}`.
    Not an error: modules that are not named.
    """
    from verify.expectations import shape_fits

    for pattern, wanted in (_expect(probe).shapes or {}).items():
        names = probe.expectations.modules(pattern)
        shapes = probe.expectations.shapes
        if not names:
            yield _nothing_fits(pattern)
            continue
        idle = [name for name in names if name not in shapes]
        wrong = [(name, shape) for name in names for shape in shapes.get(name, []) if not shape_fits(shape, wanted)]
        if wrong or idle:
            name, shape = wrong[0] if wrong else (idle[0], None)
            yield Finding(
                measured="forward never calls it" if shape is None else f"(B={shape[0]}) {_shown(shape)}",
                expected=_shown(wanted),
                message=f"{len(wrong) + len(idle)} of {plural(len(names), 'module')} called {pattern} differ",
                location=probe.describe(probe.meta_model or probe.model, name),
            )
        else:
            yield Finding(status=Status.PASS, measured=f"{pattern} {_shown(wanted)}")


@rule("SPC092", asked="expect.attention")
def attention_as_asked(probe: ModelProbe) -> Iterator[Finding]:
    """The weights of attention do not have the shape that was asked for, or their rows do not sum to one.

    Why it matters: another number of heads has the same number of parameters; a softmax over another axis too.
    Found by: following queries times keys to their softmax and to the product with the values;
    `expect: attention: [B, 12, 197, 197]`, that is heads, queries and keys.
    Not an error: attention that is computed by a fused kernel; it is taken apart for this.
    """
    wanted = _expect(probe).attention or []
    found = [a for a in probe.dataflow.attentions if a.summed]
    if not found:
        yield Finding(
            measured="no attention", expected=_shown(wanted), message="no product of queries and keys was seen"
        )
        return
    wrong = [a for a in found if not _has_shape(a, wanted)]
    if wrong:
        yield Finding(
            measured=_shown(["B", wrong[0].heads, wrong[0].rows, wrong[0].columns]),
            expected=_shown(wanted),
            message=f"{len(wrong)} of {plural(len(found), 'attention')} have another shape",
            location=probe.describe(probe.model, wrong[0].module),
        )
        return
    unequal = [a for a in found if a.normalised != a.summed]
    if unequal:
        yield Finding(
            measured="rows that do not sum to one",
            expected="each row sums to one",
            message=f"the softmax of {len(unequal)} of {plural(len(found), 'attention')} runs over another axis",
            location=probe.describe(probe.model, unequal[0].module),
            hint="softmax(dim=-1) for scores (B, heads, queries, keys)",
        )
        return
    yield Finding(status=Status.PASS, measured=f"{_shown(wanted)} in {plural(len(found), 'attention')}")


def _has_shape(attention: Attention, wanted: list[str | int]) -> bool:
    own = (attention.heads, attention.rows, attention.columns)
    return all(str(size) in ("*", str(n)) for n, size in zip(own, wanted[1:], strict=True))


@rule("SPC093", asked="expect.skips")
def skip_missing(probe: ModelProbe) -> Iterator[Finding]:
    """A residual block has no skip connection, or one that alters its input.

    Why it matters: without it, deep networks train badly or not at all, and nothing says so.
    Found by: running each block alone with the weights of its branch at zero: what comes out must be its input (or a
    ReLU of it), or still depend on the input through a projection; `expect: {blocks: "layer*.*", skips: true}`.
    Not an error: a normalisation or activation after the addition; a shortcut with a projection, or one that pads.
    """
    expect = _expect(probe)
    if not expect.skips:
        yield Finding(status=Status.SKIP, message="verify.yaml asks for no skips")
        return
    skips = probe.expectations.skips(expect.blocks or "")
    if not skips:
        yield _nothing_fits(expect.blocks or "")
        return
    wrong = [skip for skip in skips if skip.kind in ("", "changed")]
    if wrong:
        changed = wrong[0].kind == "changed"
        yield Finding(
            measured=f"{len(wrong)} of {plural(len(skips), 'block')} {'alter' if changed else 'drop'} their input",
            expected="a block whose branch gives zero returns its shortcut",
            message="the shortcut is not the input of the block" if changed else "nothing of the input is left",
            location=probe.describe(probe.model, wrong[0].block),
            hint="out = branch(x) + shortcut(x), with the x that the block received",
        )
        return
    kinds = dict.fromkeys(skip.kind for skip in skips)
    yield Finding(status=Status.PASS, measured=f"{plural(len(skips), 'block')} ({', '.join(kinds)})")


@rule("SPC094", asked="expect.feature_map")
def feature_map_too_small(probe: ModelProbe) -> Iterator[Finding]:
    """The last feature map is smaller than was asked for.

    Why it matters: a stem made for large pictures leaves a single pixel of a small one, and nothing for the later
    stages to look at; the network runs and is mediocre.
    Found by: the smallest side of what convolutions and poolings make, before global pooling;
    `expect: feature_map: 4`.
    Not an error: global pooling itself.
    """
    wanted = _expect(probe).feature_map or 1
    sides = [after for _, _, after in probe.dataflow.sides]
    if not sides:
        yield Finding(
            measured="no feature map", expected=f"at least {wanted}x{wanted}", message="no convolution was seen"
        )
        return
    smallest = min(sides)
    size = "x".join(map(str, probe.input_size[1:]))
    if smallest >= wanted:
        yield Finding(status=Status.PASS, measured=f"{smallest} pixels", expected=f"at least {wanted}")
        return
    yield Finding(
        measured=f"{smallest}x{smallest} pixels of an input of {size}",
        expected=f"at least {wanted}x{wanted}",
        message="the network shrinks its feature maps too far",
        hint="a stem of 3x3 with stride 1 and no pooling for pictures of 32x32 (He et al. 2015, section 4.2)",
    )


@rule("SPC095", severity=Status.NOTE, asked="expect")
def bias_before_norm(probe: ModelProbe) -> Iterator[Finding]:
    """Convolutions have a bias that the batch norm after them takes away again.

    Why it matters: it changes nothing but the number of parameters, which then differs from the paper's.
    Found by: convolutions whose result a batch norm reads directly. With `expect: bias_before_norm: false` it is an
    error, with `true` it is expected.
    Not an error: a model whose specification has them, which is why this is a note.
    """
    wanted = _expect(probe).bias_before_norm
    found = probe.expectations.biased_convolutions
    if wanted and not found:
        yield Finding(
            status=Status.FAIL,
            measured="no convolution with a bias before a batch norm",
            expected="biases, as verify.yaml says",
            message="the convolutions have no bias",
        )
    elif found and not wanted:
        yield Finding(
            status=Status.FAIL if wanted is False else Status.NOTE,
            measured=plural(len(found), "bias", "biases"),
            expected="0",
            message="a batch norm takes away the bias of the convolution before it",
            location=shortlist(found),
            hint="nn.Conv2d(..., bias=False)",
        )
    elif found:
        yield Finding(status=Status.PASS, measured=plural(len(found), "bias", "biases"))


@rule("SPC096", asked="expect.depth")
def depth_as_asked(probe: ModelProbe) -> Iterator[Finding]:
    """The model has another number of blocks than was asked for.

    Why it matters: a loop that runs once too often or too seldom is not visible in the output.
    Found by: counting the modules that `expect: blocks` names and that forward calls; `expect: {blocks: "blocks.*",
    depth: 12}`.
    Not an error: blocks that are called several times count once.
    """
    expect = _expect(probe)
    names = probe.expectations.modules(expect.blocks or "")
    called = [name for name in names if name in probe.expectations.shapes]
    if len(called) == expect.depth:
        yield Finding(status=Status.PASS, measured=plural(len(called), "block"))
        return
    idle = len(names) - len(called)
    yield Finding(
        measured=plural(len(called), "block") + (f" ({idle} more that forward never calls)" if idle else ""),
        expected=str(expect.depth),
        message=f"modules called {expect.blocks}",
        location=shortlist(names),
    )


@rule("SPC097", asked="expect.width")
def width_as_asked(probe: ModelProbe) -> Iterator[Finding]:
    """The blocks return another number of features than was asked for.

    Why it matters: a width that is handed on to one stage and not to the next changes the capacity, not the shapes at
    the ends.
    Found by: the feature axis of what the blocks return (the last of (B, N, D), the second of (B, C, H, W)); a list
    says where it changes: `expect: {blocks: "layer*.*", width: [16, 32, 64]}`.
    Not an error: other widths inside of a block.
    """
    expect = _expect(probe)
    names = probe.expectations.modules(expect.blocks or "")
    shapes = [probe.expectations.shapes[name][0] for name in names if name in probe.expectations.shapes]
    if not shapes:
        yield _nothing_fits(expect.blocks or "")
        return
    widths = [shape[1] if len(shape) == 4 else shape[-1] for shape in shapes]
    changes = [width for i, width in enumerate(widths) if i == 0 or width != widths[i - 1]]
    wanted = expect.width if isinstance(expect.width, list) else [expect.width]
    if changes == wanted:
        yield Finding(status=Status.PASS, measured=" -> ".join(map(str, changes)))
        return
    yield Finding(
        measured=" -> ".join(map(str, changes)),
        expected=" -> ".join(map(str, wanted)),
        message=f"features of the {plural(len(shapes), 'block')} called {expect.blocks}",
        location=shortlist(names),
    )
