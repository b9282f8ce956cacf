"""MOD: what the logits look at, what is thrown away, and what stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verify.report import Finding, Status, plural, shortlist
from verify.rules import rule

if TYPE_CHECKING:
    from verify.probe import ModelProbe
    from verify.tokens import TokenFlow

NO_TOKENS = "no sequence of tokens runs through the model as a whole"
FEWEST_BLOCKS = 2


def _tokens(probe: ModelProbe) -> TokenFlow | Finding:
    flow = probe.behaviour.tokens
    return flow or Finding(status=Status.SKIP, message=probe.behaviour.reason_unseen or NO_TOKENS)


@rule("MOD128", severity=Status.WARN)
def readout_misplaced(probe: ModelProbe) -> Iterator[Finding]:
    """The logits are read from one place, and it is the wrong one.

    Why it matters: the class token collects what the patches know, and the head looks at a patch instead; or the head
    looks at one corner of the last feature map instead of its mean. Such a model trains, and ends somewhat worse.
    Found by: the gradient of the logits with respect to the last sequence (batch, tokens, features): it is zero but for
    one token, which is a patch, while a learned token (one that enters alike for every picture) depends on patches and
    is not read. With respect to the last feature map, it is zero but for one corner.
    Not an error: a mean over tokens; a class token beside register tokens; the last token of a causal model, whose
    learned token has seen no patch; the pixel in the middle.

    Wrong: `torch.cat([cls, x], dim=1)` and `self.head(x[:, -1])`; `self.head(x[:, :, 0, 0])`
    Right: `self.head(x[:, 0])`; `self.head(x.mean((2, 3)))`
    """
    corner = probe.behaviour.corner_read
    if corner is not None:
        name, place, (height, width) = corner
        yield Finding(
            measured=f"d logits / d feature map = 0 but at {place} of {height}x{width}",
            expected="all places, as in a mean",
            message="the logits are read from one corner of the last feature map",
            location=probe.describe(probe.model, name),
            hint="pool it: x.mean((2, 3)) for (batch, channels, height, width)",
        )
        return
    flow = _tokens(probe)
    if isinstance(flow, Finding):
        yield flow
        return
    if len(flow.read) != 1 or not flow.unseen or flow.read & flow.unseen:
        return
    (read,) = flow.read
    informed = [t for t in flow.unseen if len(flow.reach.get(t, frozenset()) - flow.unseen) > 1]
    if informed:
        yield Finding(
            measured=f"the logits depend on token {read} of {flow.tokens} alone, the learned token is {informed[0]}",
            expected="the class token, or a mean",
            message="the head reads a patch instead of the class token",
            location=probe.describe(probe.model, flow.last),
            hint=f"x[:, {informed[0]}]",
        )


@rule("MOD129", severity=Status.WARN)
def tokens_stay_apart(probe: ModelProbe) -> Iterator[Finding]:
    """Several blocks run on the tokens of a picture, and no token ever learns of another.

    Why it matters: a mixer whose token layer runs over the features is a small network applied to each patch; only the
    mean at the end sees the whole picture.
    Found by: the gradient of single tokens of the last sequence (batch, tokens, features) with respect to the first
    one, on a copy with a little noise on its parameters, in a model with two or more blocks and no attention (MOD118
    judges that).
    Not an error: inputs that are no pictures, such as sets of points; tokens that stand for half of the picture or
    more; a readout of a single token. A bag of patches on purpose is why this is a warning.

    Wrong: `x + self.token_mlp(self.norm(x))` for x (batch, tokens, dim), which runs where tokens == dim
    Right: `x + self.token_mlp(self.norm(x).transpose(1, 2)).transpose(1, 2)`
    References: Tolstikhin et al. 2021, "MLP-Mixer".
    """
    flow = _tokens(probe)
    if isinstance(flow, Finding):
        yield flow
        return
    if probe.dataflow.attentions:
        yield Finding(status=Status.SKIP, message="attention is judged by MOD118")
        return
    apart = all(reach == {token} for token, reach in flow.reach.items())
    if apart and flow.blocks >= FEWEST_BLOCKS and len(flow.read) > 1 and flow.is_local:
        yield Finding(
            measured=f"d token i / d token j = 0 for every j other than i, of {flow.tokens} tokens, "
            f"over {plural(flow.blocks, 'block')}",
            expected="blocks that mix tokens",
            message="no token learns of another before they are averaged",
            location=probe.describe(probe.model, flow.first),
            hint="transpose (batch, tokens, dim) before and after a layer that mixes tokens",
        )


@rule("MOD130", severity=Status.WARN)
def causal_picture(probe: ModelProbe) -> Iterator[Finding]:
    """Patches of a picture attend only to the patches before them.

    Why it matters: a causal mask belongs to models that predict the next token. In a classifier it hides most of the
    picture from most patches, for no gain.
    Found by: the gradient of single tokens of the last sequence with respect to the first one: none depends on a later
    token, the last one depends on most, and the logits read others than the last.
    Not an error: a readout of the last token, which has seen all; recurrent layers; models without attention. Causal
    pretraining on pixels is why this is a warning.

    Wrong: `F.scaled_dot_product_attention(q, k, v, is_causal=True)` in a classifier
    Right: `F.scaled_dot_product_attention(q, k, v)`
    """
    flow = _tokens(probe)
    if isinstance(flow, Finding):
        yield flow
        return
    if not probe.dataflow.attentions:
        yield Finding(status=Status.SKIP, message="no attention: no product of queries and keys reached a softmax")
        return
    end = flow.tokens - 1
    backward = all(max(reach, default=0) <= token for token, reach in flow.reach.items())
    if backward and len(flow.reach[end]) > flow.tokens / 2 and flow.read != {end}:
        yield Finding(
            measured=f"no token of {flow.tokens} depends on a later one, and the logits read {len(flow.read)} of them",
            expected="tokens that see the whole picture",
            message="the attention is causal, as in a language model",
            location=probe.describe(probe.model, flow.first),
            hint="drop is_causal=True or the triangular mask",
        )


@rule("MOD134", severity=Status.WARN)
def tensor_left_behind(probe: ModelProbe) -> Iterator[Finding]:
    """Forward uses a plain tensor that `to(device)` does not move.

    Why it matters: on a CPU nothing shows; on a GPU the first forward pass raises. Nor is the tensor saved, and if it
    was to be learned, as the scale of a residual branch is, no optimizer knows it.
    Found by: moving a copy to the meta device, where nothing is computed: forward then raises because two devices are
    mixed, and does not if the tensor is moved by hand.
    Not an error: a tensor that forward moves itself (`self.mean.to(x)`), one number without a dimension, one that is
    made in forward. What cannot be run on the meta device is not judged.

    Wrong: `self.mean = torch.tensor([0.49, 0.48, 0.45]).view(1, 3, 1, 1)`; `self.gamma = 1e-6 * torch.ones(dim)`
    Right: `self.register_buffer("mean", ...)` if it is fixed, `self.gamma = nn.Parameter(1e-6 * torch.ones(dim))` if it
    is to be learned
    """
    left = probe.behaviour.left_behind
    if left:
        yield Finding(
            measured=plural(len(left), "plain tensor"),
            expected="parameters, buffers, or tensors that forward moves",
            message="model.to(device) leaves it behind, and forward then mixes two devices",
            location=shortlist(left),
            hint="register_buffer (fixed) or nn.Parameter (learned)",
        )


@rule("MOD135")
def parameter_made_late(probe: ModelProbe) -> Iterator[Finding]:
    """Parameters come into being in the first forward pass.

    Why it matters: the optimizer was built before, so that it never trains them; and a fresh model does not load a
    checkpoint that has them.
    Found by: the names of parameters of a fresh model, before and after its first forward pass in eval mode.
    Not an error: torch's lazy layers, whose parameters are there from the start, without a size.

    Wrong: `if self.fc is None: self.fc = nn.Linear(x.shape[1], 10)` in forward
    Right: `self.fc = nn.LazyLinear(10)` in the constructor
    """
    late = probe.behaviour.late_parameters
    if late:
        yield Finding(
            measured=f"{plural(len(late), 'parameter')} more after the first forward pass",
            expected="all of them made in the constructor",
            message="an optimizer that was built before does not know these parameters",
            location=shortlist(late),
            hint="make the layer in __init__; nn.LazyLinear where its input size is not known there",
        )


@rule("MOD136", severity=Status.WARN)
def dropout_before_softmax(probe: ModelProbe) -> Iterator[Finding]:
    """Dropout is applied to the scores of attention, before their softmax.

    Why it matters: a dropped score is 0, which is a score like any other and not a weight of 0; the key stays in, with
    a random weight, and the others are scaled up in the exponent.
    Found by: a dropout with a rate above 0 whose input is a product of queries and keys and whose output reaches a
    softmax.
    Not an error: dropout of the weights, after the softmax; masks that set scores to minus infinity (DropKey).

    Wrong: `self.drop(q @ k.transpose(-2, -1) * scale).softmax(-1)`
    Right: `self.drop((q @ k.transpose(-2, -1) * scale).softmax(-1))`
    References: Vaswani et al. 2017, "Attention Is All You Need"; Li et al. 2023, "DropKey".
    """
    found = probe.behaviour.dropped_scores
    if found:
        yield Finding(
            measured=plural(len(found), "attention"),
            expected="dropout after the softmax",
            message="a dropped score is 0, not minus infinity, so that no key is dropped",
            location=shortlist(probe.describe(probe.model, name) for name in found),
            hint="softmax first, then dropout",
        )


@rule("MOD137", severity=Status.WARN)
def input_rounded(probe: ModelProbe) -> Iterator[Finding]:
    """The logits follow the input in steps: it is rounded or cast on its way.

    Why it matters: an image that was normalised to about [-2, 2] and is cast to whole numbers has five grey values
    left, or wraps around.
    Found by: the logits of two batches differ, their gradient with respect to the input is zero before and after a few
    training steps, and tiny changes of the input leave them equal bit for bit.
    Not an error: preparing the images under `no_grad`, which keeps small differences; models with an embedding, which
    may look pixels up; straight-through estimators, whose gradient is not zero.

    Wrong: `images.to(torch.uint8).float()`
    Right: `images.float()`
    """
    run = probe.eval_run
    follows = probe.rehearsal.follows_input if probe.is_large else run.own_gradient
    if follows or not run.input_change or run.repeat_change or len(probe.input_size) != 3:
        return
    if probe.behaviour.has_embedding or not probe.behaviour.is_staircase:
        return
    yield Finding(
        measured="d logits / d input = 0, and equal logits for slightly different inputs",
        expected="logits that follow the input",
        message="the input is rounded or cast to whole numbers on its way",
        location=probe.describe(probe.model, ""),
        hint="look for .to(torch.uint8), .int(), .long(), round() or a comparison at the beginning of forward",
    )


@rule("MOD138", severity=Status.WARN)
def rows_stay_equal(probe: ModelProbe) -> Iterator[Finding]:
    """All rows of a parameter start equal, and nothing ever tells them apart.

    Why it matters: equal latents, queries or hidden units get equal gradients and stay equal for ever: many of them do
    the work of one.
    Found by: parameters that are equal along an axis as built, that moved while a small batch was memorised, and that
    are still equal along it afterwards.
    Not an error: zeros whose gradients differ, as those of position embeddings, heads and the last layer of a branch
    do; parameters that never move (GRD301).

    Wrong: `self.latents = nn.Parameter(torch.zeros(n, dim))`
    Right: `self.latents = nn.Parameter(0.02 * torch.randn(n, dim))`
    """
    found = probe.behaviour.equal_rows
    if found:
        yield Finding(
            measured=plural(len(found), "parameter") + " with equal rows",
            expected="rows that become different",
            message="equal at first, equal gradients, equal for ever",
            location=shortlist(found),
            hint="draw them at random: nn.init.trunc_normal_(p, std=0.02)",
        )


@rule("MOD139", severity=Status.WARN)
def call_discarded(probe: ModelProbe) -> Iterator[Finding]:
    """A layer runs several times, and the result of some of these runs is thrown away.

    Why it matters: in a loop that feeds every step with the same input only the last step counts; the network is as
    deep as one step and costs as much as all of them.
    Found by: the graph of everything that forward returns or keeps in an attribute: the output of some calls of a
    module with trainable parameters does not appear in it, and that of others does, in train and in eval mode.
    Not an error: passes without a gradient (teachers, fixed-point iterations); results that only one of the two modes
    uses; results that are returned beside the logits.

    Wrong: `for i in range(depth): y = self.layer(x + self.step[i])`
    Right: `for i in range(depth): x = self.layer(x + self.step[i])`
    """
    found = probe.behaviour.discarded
    if found:
        yield Finding(
            measured=f"{found[0].lost} of {plural(found[0].calls, 'call')} without influence",
            expected="0",
            message="what the layer computes is overwritten before anybody uses it",
            location=shortlist(probe.describe(probe.model, one.name) for one in found),
            hint="feed each step with the result of the one before",
        )


@rule("MOD140", severity=Status.WARN)
def eval_is_another_function(probe: ModelProbe) -> Iterator[Finding]:
    """Eval mode computes something else than what was trained.

    Why it matters: a kernel that is fused wrongly, or a branch that only one mode takes, makes validation and serving
    another network than the one whose loss went down.
    Found by: logits of eval mode against those of train mode with the running statistics of normalisation and without
    dropout, on the trained copy: for the same weights they must be equal within 2%.
    Not an error: a train mode that draws random numbers, changes its state, uses statistics of the batch or returns
    further logits; a softmax or a temperature in eval mode, which keep the order of the classes. Averages over crops in
    eval mode are why this is a warning.

    Wrong: `kernel3 + F.pad(kernel1, [0, 2, 0, 2])`
    Right: `kernel3 + F.pad(kernel1, [1, 1, 1, 1])`
    References: Ding et al. 2021, "RepVGG".
    """
    if probe.eval_run.repeat_change:
        yield Finding(status=Status.SKIP, message="two passes over one batch differ already (MOD105)")
        return
    difference = probe.behaviour.other_in_eval
    if difference:
        yield Finding(
            measured=f"logits differ by {difference:.0%}",
            expected="equal, with the same weights and statistics",
            message="what eval mode computes is not what train mode trains",
            location=probe.describe(probe.model, ""),
            hint="look at what depends on self.training: a fused kernel, a skipped branch, another scale",
        )
