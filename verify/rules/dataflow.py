"""MOD: where the tensors of a forward pass come from and go to: attention, skips, tables, stems."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from verify.report import Finding, Status, plural, shortlist
from verify.rules import rule

if TYPE_CHECKING:
    from verify.attention import Attention, TokenTest
    from verify.probe import ModelProbe

NO_ATTENTION = "no attention: no product of queries and keys reached a softmax"
SCALE_TOLERANCE = 0.02
# A larger stride costs little where pictures are large, and most of the picture where they are small.
SMALL_SIDE = 64
SMALLEST_MAP = 2


@rule("MOD116")
def attention_axis(probe: ModelProbe) -> Iterator[Finding]:
    """Attention weights do not sum to one over the values that they average.

    Why it matters: the output of a token is no weighted mean of values any more; training goes on and ends worse.
    Found by: following scores (queries times keys) to their softmax and on to the product with the values: the axis of
    the softmax must be the axis that this product sums over. A learned tensor that is added to the weights on the way
    is a warning.
    Not an error: scores laid out as keys by queries, with softmax and sum both over the keys; slot attention, which
    divides by the sum afterwards; channel attention; a bias that is added to the scores; weights that are mixed with
    those of another softmax.

    Wrong: `scores.softmax(dim=1)` for scores (batch, heads, queries, keys); `scores.softmax(-1) + bias`
    Right: `scores.softmax(dim=-1)`; `(scores + bias).softmax(-1)`
    """
    judged = [a for a in probe.dataflow.attentions if a.summed and min(a.rows, a.columns) > 1]
    if not judged:
        yield Finding(status=Status.SKIP, message=NO_ATTENTION)
        return
    wrong = [a for a in judged if a.normalised != a.summed]
    shifted = [a for a in judged if a.shifted]
    if shifted and not wrong:
        yield Finding(
            status=Status.WARN,
            measured=f"a learned tensor is added after the softmax in {plural(len(shifted), 'attention')}",
            expected="added to the scores, before the softmax",
            message="the weights with which a token averages the values do not sum to one",
            location=_modules(probe, shifted),
            hint="(scores + bias).softmax(dim=-1)",
        )
        return
    if not wrong:
        yield Finding(status=Status.PASS, measured=f"{plural(len(judged), 'product')} of queries and keys")
        return
    over = {"row": "the queries", "column": "the keys", "other": "heads or samples"}
    first = wrong[0]
    yield Finding(
        measured=f"softmax over {over[first.normalised]}, sum over {over[first.summed]} "
        f"in {len(wrong)} of {plural(len(judged), 'attention')}",
        expected="softmax and sum over the same axis",
        message="the weights with which a token averages the values do not sum to one",
        location=_modules(probe, wrong),
        hint="softmax(dim=-1) for scores (..., queries, keys)",
    )


@rule("MOD117")
def attention_scale(probe: ModelProbe) -> Iterator[Finding]:
    """Scores of attention are not scaled by one over the square root of the width of a head.

    Why it matters: without it the softmax saturates and its gradient vanishes; scaled twice, or by the width of all
    heads together, attention is nearly uniform and hardly learns to choose.
    Found by: the numbers that queries, keys and scores are multiplied with before the softmax; the width is the size of
    the axis that the product of queries and keys sums over.
    Not an error: a scale that is split between queries and keys; attention among channels that is scaled by their
    number; a learned temperature and normalised queries or keys, which are not judged. One over the width (muP),
    another constant, and no scale in a single head (non-local blocks) are warnings.

    Wrong: `scores = q @ k.transpose(-2, -1) * dim**-0.5` with several heads, or a scale before
    `scaled_dot_product_attention`, which scales itself
    Right: `scores = q @ k.transpose(-2, -1) * (dim // heads) ** -0.5`
    References: Vaswani et al. 2017, "Attention Is All You Need", 3.2.1; Yang et al. 2022, "Tensor Programs V" (muP).
    """
    seen = [a for a in probe.dataflow.attentions if a.summed and a.width > 1]
    judged = [a for a in seen if a.scale is not None]
    if not judged:
        learned = "the scale is learned, or queries and keys are normalised" if seen else NO_ATTENTION
        yield Finding(status=Status.SKIP, message=learned)
        return
    wrong = [a for a in judged if not _scaled_right(a)]
    if not wrong:
        yield Finding(status=Status.PASS, measured=f"{plural(len(judged), 'product')} of queries and keys")
        return
    first = wrong[0]
    status, message = _scale_mistake(first)
    yield Finding(
        status=status,
        measured=f"scale {first.scale:.4g} in {len(wrong)} of {plural(len(judged), 'attention')}",
        expected=f"{first.width**-0.5:.4g}, as a head is {first.width} wide",
        message=message,
        location=_modules(probe, wrong),
        hint="multiply once by head_dim**-0.5; scaled_dot_product_attention does so itself",
    )


def _scaled_right(attention: Attention) -> bool:
    scale = attention.scale or 0.0
    if attention.over_channels and _near(scale, attention.rows**-0.5):
        return True
    return _near(scale, attention.width**-0.5)


def _scale_mistake(attention: Attention) -> tuple[Status, str]:
    width, heads, scale = attention.width, attention.heads, attention.scale or 0.0
    factors = [f for f in attention.factors or () if not _near(f, 1.0)]
    if _near(scale, 1.0):
        return (Status.FAIL if heads > 1 else Status.WARN), "queries times keys are not scaled at all"
    if _near(scale, width**0.5):
        return Status.FAIL, "the scale is upside down: it multiplies by the square root of the width"
    if _near(scale, 1 / width):
        if len(factors) > 1:
            return Status.FAIL, "the scale is applied twice"
        return Status.WARN, "scaled by one over the width, which is right under muP only"
    all_heads = attention.features if attention.features > width else width * heads
    if all_heads > width and _near(scale, all_heads**-0.5):
        return Status.FAIL, "scaled by the width of all heads together instead of that of one head"
    if _near(scale, width * heads) or _near(scale, float(width)):
        return Status.FAIL, "the scores are multiplied by the width"
    if heads > 1 and _near(scale, heads**-0.5):
        return Status.FAIL, "scaled by the number of heads instead of their width"
    times = scale**-2 / width if scale else 0.0
    if times > 1.5 and _near(times, round(times)):
        return Status.WARN, f"scaled as if a head were {round(times)} times as wide"
    return Status.WARN, "an unusual scale"


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SCALE_TOLERANCE)


def _modules(probe: ModelProbe, attentions: list[Attention]) -> str:
    return shortlist(probe.describe(probe.model, name) for name in dict.fromkeys(a.module for a in attentions))


@rule("MOD118")
def tokens_never_mix(probe: ModelProbe) -> Iterator[Finding]:
    """Attention runs, and yet every token is computed from itself alone.

    Why it matters: a transformer in which no token sees another is a small network applied to each patch. It trains,
    and tops out early.
    Found by: the gradient of a token of the output with respect to the tokens of the input, in the innermost module
    around each attention, with a little noise on its parameters so that zero-initialised projections hide nothing. And
    by weights that are summed over the axis of their softmax and used for nothing else: the sum is one, whatever the
    values are.
    Not an error: windows, causal masks (some token sees another one), a sequence of one token, attention to learned
    memory.

    Wrong: `scaled_dot_product_attention(q, k, v)` for q, k, v (batch, tokens, heads, width): it attends over heads;
    `einsum("bhij,bhid->bhid", weights, v)`
    Right: `q, k, v = (t.transpose(1, 2) for t in (q, k, v))` first; `einsum("bhij,bhjd->bhid", weights, v)`
    """
    alone = [a for a in probe.dataflow.attentions if a.summed_alone and not a.summed and not a.used]
    if alone:
        yield Finding(
            measured=f"the weights of {plural(len(alone), 'attention')} are summed over the axis of their softmax",
            expected="weights times values, summed over the keys",
            message="the weights never meet the values of other tokens: their sum is one",
            location=_modules(probe, alone),
            hint='einsum("bhij,bhjd->bhid", weights, values): the index of the keys stands in both',
        )
        return
    silent, asked = probe.unmixed_tokens
    if not asked:
        yield Finding(status=Status.SKIP, message="no module maps (batch, tokens, features) by attention")
        return
    if not silent:
        yield Finding(status=Status.PASS, measured=plural(asked, "kind") + " of attention module")
        return
    first = silent[0].call
    one_key = all(site.columns == 1 for site in first.attentions)
    yield Finding(
        status=Status.WARN if one_key else Status.FAIL,
        measured=f"d token i / d token j = 0 for every j other than i, of {first.tokens} tokens",
        expected="some token depends on another one",
        message="each token attends to itself alone" if one_key else "attention runs over another axis than the tokens",
        location=_names(probe, silent),
        hint="scaled_dot_product_attention wants (batch, heads, tokens, width)",
    )


@rule("MOD119", severity=Status.WARN)
def tokens_scrambled(probe: ModelProbe) -> Iterator[Finding]:
    """Attention mixes up tokens and features: its output depends on the order in which tokens come.

    Why it matters: a view that fits in size but not in meaning hands every head pieces of several tokens. Loss curves
    look normal, accuracy is worse.
    Found by: attention treats its tokens as a set, so for permuted tokens the output must be the permuted output; two
    passes are compared, on a copy with a little noise on its parameters. A token that enters the first block must come
    from one patch, if each of its elements does; and it must be a window of the picture: its elements may not depend on
    places that do not touch, all over the picture, nor may all of them come from a strip of one channel.
    Not an error: modules in which something has a place for each token (position tables, relative biases, rotary
    angles, causal masks, convolutions, windows); those are not asked. Whole rows of pixels as tokens; pixels of a
    window that a first layer has yet to combine.

    Wrong: `q.view(batch, heads, tokens, width)`; `y.reshape(batch, tokens, dim)` for y (batch, heads, tokens, width)
    Right: `q.view(batch, tokens, heads, width).transpose(1, 2)`; `y.transpose(1, 2).reshape(batch, tokens, dim)`
    """
    patches = probe.patches_a_token
    if patches > 1:
        yield Finding(
            measured=f"a token holds pieces of {patches} patches",
            expected="all features of one patch",
            message="patches and features are mixed up by a view or reshape before the first block",
            location=probe.describe(probe.model, ""),
            hint="flatten(2).transpose(1, 2) turns (batch, dim, h, w) into (batch, tokens, dim); a reshape does not",
        )
        return
    scattered = probe.behaviour.scattered_tokens
    if scattered:
        yield Finding(
            measured=f"a token holds {scattered[1]}",
            expected="a window of the picture, all channels of it",
            message="tokens are put together of unrelated pixels by a view or reshape before the first block",
            location=probe.describe(probe.model, scattered[0]),
            hint="patches: reshape(b, c, h/p, p, w/p, p).permute(0, 2, 4, 1, 3, 5) before the last reshape; "
            "maps: flatten(2).transpose(1, 2)",
        )
        return
    found, asked = probe.scrambled_tokens
    if not asked:
        yield Finding(status=Status.SKIP, message="no attention module that must treat its tokens as a set")
        return
    if not found:
        yield Finding(status=Status.PASS, measured=plural(asked, "kind") + " of module")
        return
    yield Finding(
        measured=f"f(permuted tokens) differs from permuted f(tokens) by {found[0].value or 0:.0%}",
        expected="equal",
        message="tokens and features are mixed up by a view or reshape",
        location=_names(probe, found),
        hint="split heads as view(batch, tokens, heads, width).transpose(1, 2), and transpose back before merging them",
    )


def _names(probe: ModelProbe, tests: list[TokenTest]) -> str:
    return shortlist(probe.describe(probe.model, test.call.name) for test in tests)


@rule("MOD120")
def softmax_over_one(probe: ModelProbe) -> Iterator[Finding]:
    """A softmax runs over an axis of size one, so it gives nothing but ones.

    Why it matters: whatever it was to weigh, everything has the same weight, and no gradient passes.
    Found by: the sizes that every softmax of a forward pass sees.
    Not an error: attention to the only key there is, as in a window of one token; a single logit a sample.

    Wrong: `F.softmax(self.score(x), dim=-1)` for scores (batch, tokens, 1)
    Right: `F.softmax(self.score(x), dim=1)`
    """
    found = probe.dataflow.single_softmax
    if found:
        place, shape = found[0]
        yield Finding(
            measured=f"softmax over an axis of size 1 of {shape}",
            expected="an axis with something to choose from",
            message="this softmax gives ones",
            location=probe.describe(probe.model, place),
            hint="the axis to normalise is another one: that of the tokens, keys or branches",
        )


@rule("MOD121")
def untracked_tensor(probe: ModelProbe) -> Iterator[Finding]:
    """Forward uses a random tensor that is neither parameter nor buffer.

    Why it matters: no optimizer trains it, `to(device)` leaves it behind, and no checkpoint holds it, so that the model
    computes with other numbers after loading.
    Found by: attributes that some operation of a forward pass reads and that differ between two builds, or that
    require a gradient without being a parameter.
    Not an error: constants that every build makes alike, caches, and small ones such as the mean of the channels.

    Wrong: `self.position = torch.randn(1, n, d)`
    Right: `self.position = nn.Parameter(0.02 * torch.randn(1, n, d))`
    """
    read = probe.dataflow.read_tensors
    wanted = [name for name, t in read.items() if t.requires_grad and t.is_leaf]
    drawn = [name for name in read if name in probe.random_state and name not in wanted]
    guessed = [name for name in read if name in probe.random_looking and name not in [*wanted, *drawn]]
    for names, status, why in (
        (wanted, None, "it requires a gradient, but parameters(), to() and state_dict() do not see it"),
        (drawn, None, "random numbers that are neither trained nor saved"),
        (guessed, Status.WARN, "what looks like random numbers is neither trained nor saved"),
    ):
        if names:
            yield Finding(
                status=status,
                measured=plural(len(names), "plain tensor"),
                expected="parameters, buffers, or constants that every build makes alike",
                message=why,
                location=shortlist(names),
                hint="make it an nn.Parameter (learned) or register_buffer (fixed)",
            )


@rule("MOD122", severity=Status.WARN)
def redundant_relu(probe: ModelProbe) -> Iterator[Finding]:
    """A ReLU is applied to what a ReLU has made.

    Why it matters: it changes nothing, so one of the two stands in the wrong place. Most often the inner one belongs
    behind the addition, and the residual branch can only add.
    Found by: following the output of every ReLU; pooling, concatenation and the sum of two such outputs have no
    negative numbers either.
    Not an error: a ReLU behind a normalisation, convolution or branch; ReLU6, which also cuts from above.

    Wrong: `F.relu(shortcut + F.relu(self.bn2(y)))` behind a block that ends in a ReLU
    Right: `F.relu(shortcut + self.bn2(y))`
    """
    found = list(dict.fromkeys(probe.dataflow.redundant_relu))
    if found:
        yield Finding(
            measured=plural(len(found), "ReLU") + " without effect",
            expected="0",
            message="its input has no negative number: it was made by a ReLU",
            location=shortlist(probe.describe(probe.model, name) for name in found),
            hint="drop one; in a residual block the ReLU comes after the addition",
        )


@rule("MOD123", severity=Status.WARN)
def skip_overwritten(probe: ModelProbe) -> Iterator[Finding]:
    """A block changes its input in place and adds it afterwards.

    Why it matters: the skip connection carries the activated input instead of the input: with a ReLU it can only ever
    grow, and what was negative is lost.
    Found by: a module whose argument is overwritten by an in-place activation and is then an operand of an addition.
    Not an error: an in-place activation of what the block made itself, such as the output of a normalisation.

    Wrong: `return x + self.branch(x)` where the branch begins with `nn.ReLU(inplace=True)`
    Right: `nn.ReLU()` at the beginning of a branch
    """
    found = list(dict.fromkeys(probe.dataflow.overwritten_skips))
    if found:
        yield Finding(
            measured=plural(len(found), "block"),
            expected="0",
            message="the skip connection carries what an in-place activation left of the input",
            location=shortlist(probe.describe(probe.model, name) for name in found),
            hint="the first activation of a branch must not be in place",
        )


@rule("MOD125", severity=Status.WARN)
def stem_too_coarse(probe: ModelProbe) -> Iterator[Finding]:
    """The stem was made for large pictures, and the input is small.

    Why it matters: a first convolution with stride 2 and a pooling behind it leave 8x8 of 32x32 pixels before the first
    block has seen anything. On CIFAR-10 that costs several points of accuracy.
    Found by: sides of at most 64, of which the first convolution, with a pooling right behind it if there is one,
    leaves a quarter or less, in a network whose smallest feature map then has a side of 1 or 2.
    Not an error: patch embeddings, strides spread over the network, networks that pool down to 1x1 step by step.

    Wrong: `torchvision.models.resnet18(num_classes=10)` on 32x32
    Right: the same with `conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)` and `maxpool = nn.Identity()`
    References: He et al. 2016, "Deep Residual Learning", section 4.2 (the stem for CIFAR-10).
    """
    if len(probe.input_size) != 3 or not 1 < min(probe.input_size[1:]) <= SMALL_SIDE:
        yield Finding(status=Status.SKIP, message=f"only for pictures with sides up to {SMALL_SIDE}")
        return
    stem = probe.coarse_stem
    if stem is not None and stem[1] <= SMALLEST_MAP:
        side = min(probe.input_size[1:])
        yield Finding(
            measured=f"{side} pixels a side become {stem[0]} in the stem and {stem[1]} at the end",
            expected="a stem that keeps most of a small picture",
            message="a stem for large pictures on a small one",
            location=probe.describe(probe.model, ""),
            hint="a 3x3 convolution with stride 1 and no pooling in the stem",
        )


@rule("MOD126")
def module_made_in_forward(probe: ModelProbe) -> Iterator[Finding]:
    """Forward makes a layer, so its weights are new in every pass.

    Why it matters: the optimizer never sees them: what the layer does is random, different in each pass, and nothing is
    ever learned.
    Found by: parameters that come into being during a forward pass of a model that has run before.
    Not an error: layers without parameters; layers made in the first pass and kept (lazy ones).

    Wrong: `x = nn.Linear(128, 10)(x)` in forward
    Right: `self.head = nn.Linear(128, 10)` in the constructor
    """
    made = probe.dataflow.made_parameters
    layers = [(place, kind) for place, kind in made if kind != "Parameter"] or made
    found = dict(layers)
    if found:
        yield Finding(
            measured=", ".join(dict.fromkeys(kind for _, kind in layers)) + " made in forward",
            expected="parameters are made in the constructor",
            message="its weights are drawn anew in every pass and never trained",
            location=shortlist(probe.describe(probe.model, place) for place in found),
            hint="make the layer in __init__ and call it in forward",
        )


@rule("MOD127", severity=Status.WARN)
def random_buffer(probe: ModelProbe) -> Iterator[Finding]:
    """Forward uses a buffer of random numbers.

    Why it matters: a buffer is saved and never trained. A position embedding or projection that was to be learned
    stays at its random start.
    Found by: float buffers that differ between two builds, that forward reads and that a pass in train mode leaves as
    they are.
    Not an error: running statistics, codebooks and power iterations, which training changes; a random projection, as of
    random Fourier features, which is a note: it only multiplies.

    Wrong: `self.register_buffer("position", torch.randn(1, n, d))`
    Right: `self.position = nn.Parameter(0.02 * torch.randn(1, n, d))`
    """
    found = sorted(probe.random_buffers)
    if found:
        yield Finding(
            status=None if any(not probe.only_projects(name) for name in found) else Status.NOTE,
            measured=plural(len(found), "random buffer"),
            expected="0, or meant",
            message="random numbers that are saved and never trained",
            location=shortlist(found),
            hint="nn.Parameter if it is to be learned",
        )
