"""MOD: dropping parts of the activations, and making up for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verify.report import Finding, plural
from verify.rules import rule

if TYPE_CHECKING:
    from verify.probe import ModelProbe


@rule("MOD147")
def drop_not_rescaled(probe: ModelProbe) -> Iterator[Finding]:
    """What drops branches or units in training leaves the others as they are.

    Why it matters: on average the layers after it get less in training than in evaluation, where nothing is dropped;
    batch norms then hold the wrong statistics, and the deeper the network, the further the two modes are apart.
    Found by: calling every module that is named as dropping paths, connections, blocks or units: in train mode each
    value is zero or exactly what it was, in eval mode each is what it was.
    Not an error: dividing by the share that is kept in training, or multiplying by it in evaluation; a rate of 0;
    modules that hide words, tokens, labels or inputs, where the rest must stay as it is.

    Wrong: `return x * mask`
    Right: `return x * mask / (1 - self.p)`
    References: Huang et al. 2016, "Deep Networks with Stochastic Depth"; Srivastava et al. 2014, "Dropout".
    """
    from verify.drops import unscaled_drops

    found = unscaled_drops(probe)
    if found:
        name, share = max(found, key=lambda one: one[1])
        yield Finding(
            measured=f"{share:.0%} dropped, the others as they were, in {plural(len(found), 'module')}",
            expected=f"the others divided by {1 - share:.2g}",
            message="train mode gives less than eval mode on average: what is kept is not scaled up",
            location=probe.describe(probe.model, name),
            hint="divide by the share that is kept: x * mask / (1 - p)",
        )
