"""Models of token sequences: targets that can be read, padding that counts; planted bugs and look-alikes."""

import textwrap
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.verify.run_records import Run
from verify.rules.tokens import (
    padding_changes_output,
    padding_in_the_loss,
    padding_in_the_mean,
    target_in_the_input,
)
from verify.trace.child.token_probes import probe_tokens
from verify.trace.record import Record

PAD, WORDS = 0, 11
SOURCE = """\
import torch
from torch import nn
class Net(nn.Module):
    def forward(self, tokens):
        keep = tokens != PAD
"""


class Net(nn.Module):
    """One block of attention, with or without masks; a decoder too when it is given a second sequence."""

    def __init__(self, *, causal: bool = True, keep: bool = True, cross: bool = True, pooled: bool = False) -> None:
        super().__init__()
        self.causal, self.keep, self.cross, self.pooled = causal, keep, cross, pooled
        self.embed = nn.Embedding(WORDS, 16, padding_idx=PAD)
        self.place = nn.Parameter(torch.randn(1, 32, 16))
        self.head = nn.Linear(16, WORDS)

    def attend(self, x: Tensor, memory: Tensor, keep: Tensor | None, causal: bool) -> Tensor:
        mask = torch.ones(x.shape[1], memory.shape[1]).tril().bool() if causal else None
        if keep is not None:
            mask = keep[:, None] if mask is None else mask & keep[:, None]
        return x + functional.scaled_dot_product_attention(x, memory, memory, attn_mask=mask)

    def forward(self, tokens: Tensor, written: Tensor | None = None) -> Tensor:
        keep = tokens != PAD if self.keep else None
        x = self.embed(tokens) + self.place[:, : tokens.shape[1]]
        x = self.attend(x, x, keep, self.causal and written is None)
        if self.pooled:
            x = x + x.mean(dim=1, keepdim=True)[:, 0][:, None]
        if written is not None:
            y = self.embed(written) + self.place[:, : written.shape[1]]
            x = self.attend(self.attend(y, y, None, self.causal), x, keep if self.cross else None, False)
        return self.head(x)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.code = nn.Embedding(WORDS, 16), nn.Linear(16 * 9, 8)
        self.head = nn.Linear(8, 9 * WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.code(self.embed(tokens).flatten(1))).view(len(tokens), 9, WORDS)


def texts(rows: int = 6, length: int = 10) -> Tensor:
    torch.manual_seed(0)
    tokens = torch.randint(1, WORDS, (rows, length))
    for row in range(1, rows):
        tokens[row, length - row :] = PAD
    return tokens


def record(model: nn.Module, *args: Tensor, targets: Tensor, **options: object) -> Record:
    before = [m.training for m in model.modules()]
    captured = SimpleNamespace(model=model, inputs=(args, {}), trained_call=(targets, options))
    result = probe_tokens(captured)
    assert before == [m.training for m in model.modules()]
    source = {"kind": "source", "path": "train.py", "text": textwrap.dedent(SOURCE)}
    return Record([{"kind": "probe", "name": "tokens", "result": result, "seconds": 0.1}, source])


def test_unshifted_targets_and_a_missing_mask() -> None:
    tokens = texts()
    for model, given, targets in [
        (Net(), tokens, tokens),
        (Net(causal=False), tokens[:, :-1], tokens[:, 1:]),
    ]:
        seen = record(model, given, targets=targets.flatten(), ignore_index=PAD)
        assert len(list(target_in_the_input(seen))) == 1
    source = torch.randint(1, WORDS, (6, 8))
    for model, given in [(Net(causal=False), tokens[:, :-1]), (Net(), tokens[:, 1:])]:
        seen = record(model, source, given, targets=tokens[:, 1:].flatten(), ignore_index=PAD)
        assert len(list(target_in_the_input(seen))) == 1


def test_the_last_output_left_out() -> None:
    tokens = texts()
    for model, count in [(Net(causal=False), 1), (Net(), 0)]:
        seen = record(model, tokens, targets=tokens[:, 1:].flatten(), ignore_index=PAD)
        assert len(list(target_in_the_input(seen))) == count


@pytest.mark.parametrize("shift", [0, 1])
def test_a_copied_source_passes(shift: int) -> None:
    tokens = torch.randint(1, WORDS, (6, 10))
    source = tokens[:, 1:] if shift == 0 else tokens
    seen = record(Net(), source, tokens[:, :-1], targets=tokens[:, 1:].flatten())
    assert not list(target_in_the_input(seen))


def test_masked_words_and_autoencoders_pass() -> None:
    tokens = torch.randint(1, WORDS, (6, 9))
    masked = tokens.clone()
    masked[:, ::3] = 1
    targets = torch.where(masked == tokens, -100, tokens)
    seen = record(Net(causal=False), masked, targets=targets.flatten())
    with pytest.raises(Exception, match="holds the targets"):
        list(target_in_the_input(seen))
    assert not list(target_in_the_input(record(Autoencoder(), tokens, targets=tokens.flatten())))


def test_padding_in_the_loss() -> None:
    tokens = texts()
    targets = tokens[:, 1:].flatten()
    for options in ({}, {"reduction": "sum"}):
        assert len(list(padding_in_the_loss(record(Net(), tokens[:, :-1], targets=targets, **options)))) == 1
    weight = torch.ones(WORDS)
    weight[PAD] = 0
    for options in ({"ignore_index": PAD}, {"weight": weight}, {"reduction": "none"}):
        with pytest.raises(Exception, match=r"padding|summed"):
            list(padding_in_the_loss(record(Net(), tokens[:, :-1], targets=targets, **options)))


def test_padding_that_changes_the_output() -> None:
    tokens, written = texts(), torch.randint(1, WORDS, (6, 5))
    wrong = [(Net(cross=False), (tokens, written)), (Net(pooled=True), (tokens,))]
    right = [(Net(), (tokens, written)), (Net(), (tokens,))]
    for models, count in ((wrong, 1), (right, 0)):
        for model, given in models:
            seen = record(model, *given, targets=tokens.flatten())
            assert len(list(padding_changes_output(seen))) == count


def test_models_without_a_mask_or_with_convolutions_are_not_judged() -> None:
    tokens = texts()
    model = Net(keep=False, causal=False)
    seen = record(model, tokens, targets=tokens.flatten())
    unmasked = Record([e for e in seen.events if e["kind"] == "probe"] + [
        {"kind": "source", "path": "train.py", "text": "import torch\n"}
    ])  # fmt: skip
    assert not list(padding_changes_output(unmasked))
    model.conv = nn.Conv1d(2, 2, 3)
    assert not list(padding_changes_output(record(model, tokens, targets=tokens.flatten())))


def evaluated(loss: float, ignored: int = 20, reduction: str = "sum") -> Record:
    """Batches of 50 targets whose losses sum up to 70 each, and what the script holds afterwards."""
    run = Run(2)
    run.drop("loss").drop("held_values")
    for event in [e for e in run.events if e["kind"] == "pass" and not e["trained"]]:
        target = {"shape": [50], "float": False, "min": 1, "max": 9, **({"ignored": ignored} if ignored else {})}
        fields = {"fn": "cross_entropy", "reduction": reduction, "value": 70.0, "grad": False, "target": target}
        run.events.insert(run.events.index(event), {"kind": "loss", "step": 0, **fields})
    run.after("iter_end", "held_values", where=lambda e: e["loader"] == 1, values={"val_loss": loss}, loc="a.py:1")
    return run.record()


def test_padding_in_the_mean() -> None:
    assert len(list(padding_in_the_mean(evaluated(70 / 50)))) == 1
    assert not list(padding_in_the_mean(evaluated(70 / 30)))
    assert not list(padding_in_the_mean(evaluated(1.234)))
    for other in (evaluated(70 / 50, ignored=0), evaluated(70 / 50, reduction="mean")):
        with pytest.raises(Exception, match="ignores"):
            list(padding_in_the_mean(other))
