import pytest
import torch
from torch import nn

from models.resnet import BasicBlock, ConvShortcut, PadShortcut, ResNet

# He et al. 2016, table 6, give 0.27, 0.46, 0.66, 0.85 and 1.7 million for ResNet-20, 32, 44, 56 and 110.
COUNTS = {1: 75_290, 2: 172_506, 3: 269_722, 5: 464_154, 7: 658_586, 9: 853_018, 18: 1_727_962}
SHORTCUT_B_ADDS = 2752


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("blocks", COUNTS)
def test_parameter_count(blocks, shortcut):
    with torch.device("meta"):
        model = ResNet(blocks_per_stage=blocks, shortcut=shortcut)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[blocks] + SHORTCUT_B_ADDS * (shortcut == "B")
    weighted = [
        m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(weighted) == 6 * blocks + 2


def test_stages_halve_the_image_and_double_the_width():
    with torch.device("meta"):
        model, x = ResNet(), torch.zeros(2, 3, 32, 32)
        shapes = []
        for part in (model.stem, model.stage1, model.stage2, model.stage3):
            x = part(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_block_is_its_shortcut_when_the_residual_is_zero(shortcut):
    block = BasicBlock(16, 32, stride=2, shortcut=shortcut).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), torch.relu(block.shortcut(x)))
    assert block(x).abs().sum() > 0


def test_identity_where_the_shape_stays():
    assert isinstance(BasicBlock(16, 16).shortcut, nn.Identity)
    assert isinstance(BasicBlock(16, 32, stride=2).shortcut, PadShortcut)
    assert isinstance(BasicBlock(16, 32, stride=2, shortcut="B").shortcut, ConvShortcut)


def test_option_a_takes_every_second_pixel_and_adds_zeros():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert PadShortcut(1, 3, 2)(x).tolist() == [[[[0, 2], [8, 10]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]]


def test_he_initialisation():
    torch.manual_seed(0)
    weight = ResNet().stage3[0].conv2.weight  # fan-in 64 * 9
    assert weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)


def test_every_convolution_is_followed_by_batch_norm():
    names = [type(m).__name__ for m in BasicBlock(16, 32, 2, "B").modules()]
    assert names.count("Conv2d") == names.count("BatchNorm2d") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks_per_stage": 0}, "blocks_per_stage must be at least 1"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"shortcut": "C"}, "shortcut must be one of A, B, got 'C'"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"got \(2, 1, 32, 32\)"):
        ResNet()(torch.zeros(2, 1, 32, 32))
