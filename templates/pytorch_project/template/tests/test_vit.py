import math

import pytest
import torch
import torch.nn.functional as F

from models.readout import attention_maps, attention_rollout, intermediate_shapes, recorded_attention
from models.vit import Attention, EncoderBlock, PatchEmbedding, RelativePositionBias, VisionTransformer, vit

# Table 1 of the paper gives 86, 307 and 632 million for B, L and H; DeiT 5 and 22 million for Ti and S.
COUNTS = {"Ti": 5_717_416, "S": 22_050_664, "B": 86_567_656, "L": 304_326_632, "H": 632_045_800}
SMALL = {"image_size": 16, "patch_size": 4, "dim": 24, "depth": 2, "heads": 3, "mlp_dim": 48}


def small(**changes):
    torch.manual_seed(0)
    model = VisionTransformer(10, **(SMALL | changes))
    torch.nn.init.normal_(model.head.weight)
    return model


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_count(variant):
    with torch.device("meta"):
        assert count(vit(1000, variant=variant)) == COUNTS[variant]


def test_other_counts():
    with torch.device("meta"):
        assert count(vit(1000, patch_size=32)) == 88_224_232
        assert count(vit(1000, image_size=384)) == 86_859_496
        assert count(vit(10, variant="Ti", image_size=32, patch_size=4)) == 5_362_762
        assert count(vit(10, variant="mini")) == 2_693_578
        assert count(vit(10, variant="micro")) == 811_146
        learned = 65 * 128
        assert count(vit(10, variant="micro", positions="none")) == 811_146 - learned
        assert count(vit(10, variant="micro", positions="relative")) == 811_146 - learned + 6 * 4 * (15 * 15 + 3)


def test_shapes_are_those_of_the_paper():
    with torch.device("meta"):
        shapes = intermediate_shapes(vit(1000), torch.zeros(2, 3, 224, 224))
    assert shapes["patches"] == (2, 196, 768)
    assert shapes["blocks.0.attention"] == shapes["blocks.11"] == shapes["norm"] == (2, 197, 768)
    assert shapes["blocks.0.mlp.0"] == (2, 197, 3072)
    assert shapes["head"] == (2, 1000)


def test_patches_are_in_reading_order():
    embed = PatchEmbedding(1, 2, 4)
    with torch.no_grad():
        embed.projection.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
        embed.projection.bias.zero_()
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert embed(image)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("bias", [None, RelativePositionBias(2, 3)])
def test_attention_is_softmax_of_scaled_products(bias):
    torch.manual_seed(0)
    layer, x = Attention(24, 3, bias=bias), torch.randn(2, 5, 24)
    if bias is not None:
        torch.nn.init.normal_(bias.table)
    maps = layer.attention_map(x)
    query, key, value = layer.qkv(x).split(24, dim=-1)
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        logits = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(8)
        expected = (logits if bias is None else logits + bias()[head]).softmax(-1)
        torch.testing.assert_close(maps[:, head], expected)
    mixed = torch.cat([maps[:, h] @ value[..., 8 * h : 8 * h + 8] for h in range(3)], dim=-1)
    torch.testing.assert_close(layer(x), layer.projection(mixed), atol=1e-5, rtol=1e-4)


def test_blocks_are_pre_norm():
    block, x = EncoderBlock(24, 3, 48), 100 * torch.randn(2, 5, 24)
    for layer in (block.attention.projection, block.mlp[3]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    assert torch.equal(block(x), x)  # with a norm after the sum it would be normalised


def test_relative_bias_depends_on_the_offset_alone():
    bias = RelativePositionBias(3, 2)
    torch.nn.init.normal_(bias.table)
    patches = bias()[:, 1:, 1:].unflatten(1, (3, 3)).unflatten(3, (3, 3))  # (heads, row, column, row, column)
    assert torch.equal(patches[:, 0, 0, 1, 2], patches[:, 1, 0, 2, 2])
    assert not torch.equal(patches[:, 0, 0, 1, 2], patches[:, 1, 2, 0, 0])
    assert len(bias()[0].unique()) == 25 + 3


@pytest.mark.parametrize(("positions", "knows"), [("learned", True), ("relative", True), ("none", False)])
def test_only_positions_tell_patches_apart(positions, knows):
    model = small(positions=positions).eval()
    for bias in (m for m in model.modules() if isinstance(m, RelativePositionBias)):
        torch.nn.init.normal_(bias.table)
    if positions == "learned":
        torch.nn.init.normal_(model.position_embedding)
    images = torch.randn(2, 3, 16, 16)
    swapped = torch.cat([images[..., 8:], images[..., :8]], dim=-1)  # the left half of the patches and the right one
    assert torch.allclose(model(images), model(swapped), atol=1e-5) != knows


def test_attention_can_be_read_out_and_changes_nothing():
    model, images = small(), torch.randn(2, 3, 16, 16)
    before = model(images)
    maps = attention_maps(model, images)
    assert list(maps) == ["blocks.0.attention", "blocks.1.attention"]
    assert all(m.shape == (2, 3, 17, 17) for m in maps.values())
    torch.testing.assert_close(maps["blocks.1.attention"].sum(-1), torch.ones(2, 3, 17))
    assert torch.equal(model(images), before)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    rollout = attention_rollout(maps)
    torch.testing.assert_close(rollout.sum(1), torch.ones(2))
    with recorded_attention(model) as recorded:
        assert recorded == {}
        model(images)
        assert len(recorded) == 2


def test_the_normal_path_uses_the_fused_attention(monkeypatch):
    calls = []

    def spy(*arguments, original=F.scaled_dot_product_attention, **options):
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(Attention, "attention_map", lambda *_: pytest.fail("computed in the normal path"))
    small()(torch.randn(1, 3, 16, 16))
    assert len(calls) == 2


def test_initialisation_is_that_of_the_papers_code():
    torch.manual_seed(0)
    model = vit(10, variant="mini")
    dim = 192
    assert torch.count_nonzero(model.head.weight) == torch.count_nonzero(model.cls_token) == 0
    assert model.position_embedding.std().item() == pytest.approx(0.5, rel=0.05)
    assert small().position_embedding.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.patches.projection.weight.std().item() == pytest.approx(48**-0.5, rel=0.05)
    for matrix in model.blocks[3].attention.qkv.weight.chunk(3):
        assert matrix.abs().max().item() == pytest.approx(math.sqrt(6 / (2 * dim)), rel=0.01)
    assert model.blocks[3].mlp[0].weight.abs().max().item() == pytest.approx(math.sqrt(6 / (dim + 768)), rel=0.01)
    assert 0 < model.blocks[3].mlp[0].bias.abs().max() < 1e-5


def test_dropout_acts_in_training_alone():
    model, images = small(dropout=0.5), torch.randn(2, 3, 16, 16)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_names_that_get_no_weight_decay():
    for positions in ("learned", "relative"):
        names = dict(small(positions=positions).named_parameters())
        exempt = small(positions=positions).no_weight_decay() & set(names)
        assert all(names[name].dim() > 1 for name in exempt)
        assert len(exempt) == {"learned": 2, "relative": 3}[positions]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, "patch_size 5 does not divide image_size 16"),
        ({"heads": 5}, "heads 5 does not divide dim 24"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"positions": "sine"}, "positions must be one of learned, none, relative"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_unknown_variant():
    with pytest.raises(ValueError, match="variant must be one of micro, mini, Ti, S, B, L, H, got 'XL'"):
        vit(variant="XL")


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"\(3, 16, 16\), got \(2, 3, 32, 32\)"):
        small()(torch.zeros(2, 3, 32, 32))
