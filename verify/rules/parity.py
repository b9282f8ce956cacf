"""PAR: whether a model computes the same function as the reference that `--like` names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verify.report import Finding, Status, plural, shortlist
from verify.rules import rule

if TYPE_CHECKING:
    from verify.locate import Difference
    from verify.probe import ModelProbe


@rule("PAR131", asked="like")
def structure_differs(probe: ModelProbe) -> Iterator[Finding]:
    """A parameter of the model or of the reference has no counterpart in the other.

    Why it matters: then it is another network, whatever its name says.
    Found by: following which operation reads which parameter, in order of execution, and pairing by shape. Parameters
    that forward never reads count as absent.
    Not an error: other names, another order of registration; queries, keys and values fused or separate; a convolution
    or a product over patches; a table of positions in two pieces or with other axes of size 1.
    """
    from verify.matching import label

    parity = probe.parity
    found = parity.matching
    if found.complete:
        yield Finding(status=Status.PASS, measured=f"{plural(len(found.pairs), 'pair')} of tensors")
        return
    reference, candidate = parity.target.name, probe.target.name
    parity.show_structures()
    idle = [name for uses in parity.uses for name in uses.idle]
    missing, surplus = (sorted(uses, key=lambda use: use.order) for uses in (found.missing, found.surplus))
    first = f"{label(missing[0])} of {reference}" if missing else f"{label(surplus[0])} of {candidate}"
    yield Finding(
        measured=f"{len(missing)} only in {reference}, {len(surplus)} only in {candidate}",
        expected="every parameter has a counterpart",
        message=f"the first parameter without a counterpart is {first}",
        location=surplus[0].name if surplus else "",
        hint=f"built but never used by forward: {shortlist(idle)}" if idle else "the table below shows both structures",
    )


@rule("PAR132", asked="like")
def outputs_differ(probe: ModelProbe) -> Iterator[Finding]:
    """With the weights of the reference, the model gives other logits.

    Why it matters: parameter counts and shapes do not tell pre-norm from post-norm, one scale of attention from
    another, or GELU from its approximation.
    Found by: random numbers in every parameter and statistic of the reference (norms, biases and layer scales too),
    copied into the model; both in eval mode on the same two inputs. Logits may differ by 1e-4 of their standard
    deviation; where float32 is not enough to tell, float64 decides. The module named is the innermost one that gets
    what the reference has too and returns something else.
    Not an error: rounding; another order of the rows of fused queries, keys and values, or of the pixels of a patch,
    if it is the same order throughout.
    """
    parity = probe.parity
    if not parity.matching.complete:
        yield Finding(status=Status.SKIP, message="the structures differ already (PAR131)")
        return
    result = parity.comparison
    measured = f"logits differ by {result.difference:.1e} of their standard deviation ({result.precision})"
    if result.first is None:
        yield Finding(status=Status.PASS, measured=measured, expected="at most 1e-04")
        return
    first = result.first
    size = "" if first.size is None else f"; the output of this module by {first.size:.1e} of its own"
    place = probe.describe(parity.candidate, first.module)
    yield Finding(
        measured=measured + size,
        expected="at most 1e-04",
        message=_told(first, parity.target.name),
        location=place,
        hint=_where(first),
    )


def _told(first: Difference, reference: str) -> str:
    named = first.module or "the model's own forward"
    there = "" if first.counterpart is None else f", unlike {first.counterpart or 'that'} of {reference}"
    return f"{named} is the first to get an equal input and return something else{there}"


def _where(first: Difference) -> str:
    if first.own and first.own != first.other:
        return f"it is {first.own} here and {first.other} in the reference"
    last, then = first.between
    if then:
        before = f"{last} still agrees; " if last else ""
        return f"{before}{then} already gets another input, so look at what this forward does before it"
    if last:
        return f"everything inside agrees up to {last}; look at what this forward does after it"
    return "compare the two forward methods"


@rule("PAR133", severity=Status.NOTE, asked="like")
def epsilon_differs(probe: ModelProbe) -> Iterator[Finding]:
    """Normalisations add another number to the variance than those of the reference.

    Why it matters: pretrained weights give slightly other logits; where a variance is small, very different ones.
    Found by: the epsilon of each pair of normalisations.
    Not an error: for a network that is trained from scratch, which is why this is a note. PyTorch's default is 1e-5;
    vision transformers use 1e-6.
    """
    parity = probe.parity
    if not parity.matching.complete:
        yield Finding(status=Status.SKIP, message="the structures differ already (PAR131)")
        return
    different = parity.epsilons
    if not different:
        return
    theirs, own = different[0]
    yield Finding(
        measured=f"eps {own.value:g} in {plural(len(different), 'normalisation')}",
        expected=f"{theirs.value:g}, as {theirs.module} of {parity.target.name}",
        message="the epsilon of normalisations differs from the reference",
        location=shortlist(epsilon.module for _, epsilon in different),
        hint="it matters for pretrained weights only",
    )
