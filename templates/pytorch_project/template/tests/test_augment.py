import pytest
import torch
from torchvision.transforms import functional as tv

from data.augment import (
    NO_AUGMENTATION,
    Augmentation,
    apply_jitter,
    color_jitter,
    make_batch,
    normalize_,
    pad_images,
    random_crop,
    random_flip,
    seeded_generator,
)
from data.randaugment import rand_augment

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_crop_cuts_what_slicing_cuts(images):
    padded, index = pad_images(images, 4), torch.randperm(40, generator=generator())
    crops = random_crop(padded, index, 4, generator(5))
    tops, lefts = torch.randint(0, 9, (2, 40), generator=generator(5))  # the draw that random_crop makes
    for crop, i, top, left in zip(crops, index, tops, lefts, strict=True):
        assert torch.equal(crop, padded[i, top : top + 32, left : left + 32])


def test_crop_of_images_that_are_not_square():
    images = torch.arange(2 * 5 * 7, dtype=torch.uint8).view(2, 5, 7, 1)
    crops = random_crop(pad_images(images, 1), torch.tensor([1]), 1, generator(3))
    top, left = torch.randint(0, 3, (2, 1), generator=generator(3))
    assert torch.equal(crops[0], pad_images(images, 1)[1, top : top + 5, left : left + 7])


def test_crop_reaches_the_corners_of_the_last_image(images):
    padded, last = pad_images(images, 4), torch.full((2000,), 39)
    crops = random_crop(padded, last, 4, generator())
    assert any(torch.equal(crop, padded[39, 8:, 8:]) for crop in crops)
    assert any(torch.equal(crop, padded[39, :32, :32]) for crop in crops)


def test_every_image_has_its_own_crop(images):
    same_image = torch.zeros(500, dtype=torch.int64)
    crops = random_crop(pad_images(images, 4), same_image, 4, generator())
    assert len(crops.flatten(1).unique(dim=0)) == 81  # all 9 x 9 offsets, not one for the batch


def test_half_of_the_images_are_flipped(images):
    many = images[:1].repeat(1000, 1, 1, 1)
    result = random_flip(many, generator())
    as_before = (result == many).flatten(1).all(1)
    mirrored = (result == many.flip(2)).flatten(1).all(1)
    assert (as_before | mirrored).all()
    assert 440 < mirrored.sum() < 560


@pytest.mark.parametrize("brightness_first", [True, False])
def test_jitter_is_that_of_torchvision(images, brightness_first):
    bright, contr = torch.rand(2, 40, 1, generator=generator()) * 0.8 + 0.6  # wide, so that clamping takes part
    order = torch.full((40, 1), brightness_first)
    result = apply_jitter(images.float(), bright, contr, order)
    for got, image, b, c in zip(result, images, bright, contr, strict=True):
        expected = image.permute(2, 0, 1).float() / 255
        steps = [(tv.adjust_brightness, b), (tv.adjust_contrast, c)]
        for adjust, factor in steps if brightness_first else reversed(steps):
            expected = adjust(expected, factor.item())
        torch.testing.assert_close(got.permute(2, 0, 1) / 255, expected, atol=1e-5, rtol=0)


def test_jitter_draws_for_every_image(images):
    same = images[:1].float().repeat(200, 1, 1, 1)
    result = color_jitter(same, 0.2, 0.2, generator())
    assert len(result.flatten(1).unique(dim=0)) == 200
    only_bright = color_jitter(torch.full((500, 2, 2, 3), 100.0), 0.2, 0.0, generator())[:, 0, 0, 0]
    assert 80 <= only_bright.min() < 82
    assert 118 < only_bright.max() <= 120


def test_normalize_is_that_of_torchvision(images):
    result = images.float()
    normalize_(result, MEAN, STD)
    expected = tv.normalize(images.permute(0, 3, 1, 2).float() / 255, MEAN, STD)
    torch.testing.assert_close(result.permute(0, 3, 1, 2), expected, atol=1e-5, rtol=1e-5)


def test_batch_without_augmentation_is_the_images(images):
    index = torch.tensor([3, 1])
    batch = make_batch(images, index, NO_AUGMENTATION, MEAN, STD, None)
    expected = tv.normalize(images[index].permute(0, 3, 1, 2).float() / 255, MEAN, STD)
    torch.testing.assert_close(batch, expected, atol=1e-5, rtol=1e-5)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_batch_leaves_the_images_alone(images):
    padded = pad_images(images, 4)
    before = padded.clone()
    make_batch(padded, torch.arange(40), Augmentation(), MEAN, STD, generator())
    assert torch.equal(padded, before)


def test_randaugment_draws_for_every_image_and_repeats(images):
    same = images[:1].repeat(60, 1, 1, 1)
    state = torch.get_rng_state()
    seeds = list(range(60))
    result = rand_augment(same, 9, seeds)
    assert result.shape == same.shape
    assert result.dtype == torch.uint8
    assert len(result.flatten(1).unique(dim=0)) > 20
    assert torch.equal(result[20:], rand_augment(same[20:], 9, seeds[20:]))
    assert not torch.equal(result, rand_augment(same, 9, seeds[::-1]))
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_with_randaugment(images):
    plain, changed = (
        make_batch(images, torch.arange(40), Augmentation(0, False, 0, 0, magnitude), MEAN, STD, generator())
        for magnitude in (0, 9)
    )
    assert changed.shape == plain.shape
    assert not torch.equal(changed, plain)


def test_streams_of_random_numbers_differ():
    keys = [(seed, epoch, stream) for seed in range(3) for epoch in range(3) for stream in range(3)]
    first_numbers = {torch.rand(1, generator=seeded_generator(*key), dtype=torch.float64).item() for key in keys}
    assert len(first_numbers) == 27
