from itertools import chain

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from data.augment import NO_AUGMENTATION
from data.dataloader import load_test_split, load_training_splits, make_loader, visualize_batch
from data.dataloader import main as data_main
from data.loader import BatchLoader, Split
from data.sources import SOURCES
from engine.config import Config
from engine.errors import UserError


@pytest.fixture
def digits():
    return load_training_splits("digits")


def batches_of(loader, epoch=0, first_batch=0):
    loader.set_epoch(epoch, first_batch)
    return list(loader)


def same_batches(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


def test_cifar10_has_352_and_40_batches():
    def loader(count):
        images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, 32, 32, 3)
        split = Split("train", images, torch.zeros(count), SOURCES["cifar10"], NO_AUGMENTATION, "")
        return BatchLoader(split, 128, loader="workers")

    assert (len(loader(45_000)), len(loader(5_000))) == (352, 40)


def test_digits_parts_do_not_overlap(digits):
    train, val = digits
    test = load_test_split("digits")
    assert (len(train), len(val), len(test)) == (1295, 143, 359)
    whole, part = np.concatenate([s.images.flatten(1).numpy() for s in (train, val)]), test.images.flatten(1).numpy()
    assert not {row.tobytes() for row in whole} & {row.tobytes() for row in part}
    for split in (train, val, test):
        counts = torch.bincount(split.labels)
        assert counts.max() - counts.min() <= 0.06 * len(split) / 10 + 2


def test_only_training_is_augmented(digits):
    train, val = digits
    train_loader, val_loader = (BatchLoader(split, 64, shuffle=split.name == "train") for split in (train, val))
    assert same_batches(batches_of(val_loader, epoch=0), batches_of(val_loader, epoch=1))
    assert not same_batches(batches_of(train_loader, epoch=0), batches_of(train_loader, epoch=1))
    # The same image in two epochs: found again by its number, and not the same pixels.
    seen = []
    for epoch in range(2):
        train_loader.set_epoch(epoch)
        position = list(chain(*train_loader.order)).index(7)
        seen.append(torch.cat([images for images, _ in train_loader])[position])
    assert not torch.equal(*seen)


def test_a_smaller_batch_may_come_early(digits):
    # A tool that looks at a few batches of an epoch takes the last one among them.
    loader = BatchLoader(digits[0], 100, shuffle=True)
    fetched = list(loader._fetch)
    loader._fetch = [fetched[0], fetched[-1]]
    assert [len(images) for images, _ in loader] == [100, 95]


def test_validation_images_are_the_plain_ones(digits):
    _, val = digits
    images = torch.cat([images for images, _ in BatchLoader(val, 64)])
    mean, std = torch.tensor(val.source.mean), torch.tensor(val.source.std)
    expected = (val.images / 255 - mean) / std
    torch.testing.assert_close(images.permute(0, 2, 3, 1), expected, atol=1e-5, rtol=1e-5)


def test_augment_can_be_switched_off():
    train, _ = load_training_splits("digits", augment=False)
    assert train.augmentation == NO_AUGMENTATION


def test_an_epoch_is_every_image_once(digits):
    loader = BatchLoader(digits[0], 100, shuffle=True, seed=3)
    orders = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        orders.append(torch.tensor(list(chain(*loader.order))))
        assert torch.equal(orders[-1].sort().values, torch.arange(1295))
        labels = torch.cat([labels for _, labels in loader])
        assert torch.equal(labels, digits[0].labels[orders[-1]])
    assert not torch.equal(*orders)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_give_the_same_bits_as_memory(digits, num_workers):
    resident = BatchLoader(digits[0], 200, shuffle=True, seed=5, loader="resident")
    workers = BatchLoader(digits[0], 200, shuffle=True, seed=5, loader="workers", num_workers=num_workers)
    before = torch.get_rng_state()
    for epoch, first_batch in [(0, 0), (1, 0), (1, 4)]:
        expected = batches_of(resident, epoch, first_batch)
        assert len(expected) == 7 - first_batch
        assert same_batches(batches_of(workers, epoch, first_batch), expected)
    assert torch.equal(torch.get_rng_state(), before)  # neither takes numbers from the global generator


def test_an_epoch_can_be_entered_anywhere(digits):
    loader = BatchLoader(digits[0], 100, shuffle=True)
    assert same_batches(batches_of(loader, 2, first_batch=5), batches_of(loader, 2)[5:])
    assert batches_of(loader, 2, first_batch=len(loader)) == []


def test_auto_keeps_small_data_in_memory(digits, monkeypatch):
    assert BatchLoader(digits[0], 10).resident
    monkeypatch.setattr("data.loader.RESIDENT_LIMIT", 1295 * 40 * 40 * 3 - 1)
    assert not BatchLoader(digits[0], 10).resident


def test_wrong_number_of_classes(digits):
    with pytest.raises(UserError, match="num_classes is 7, but digits has 10"):
        make_loader(digits[0], Config(dataset="digits", num_classes=7))


def test_wrong_image_size(digits):
    with pytest.raises(UserError, match="image_size is 28, but the images of digits have 32 pixels"):
        make_loader(digits[0], Config(dataset="digits", image_size=28))


def test_picture_shows_the_batch(tmp_path, digits):
    path = tmp_path / "new" / "batch.png"
    visualize_batch(BatchLoader(digits[0], 64), path, num_images=9)
    picture = imread(path)[..., :3]
    third = picture.shape[0] // 3
    for row in range(3):  # every row holds images, which are partly black; the page is white
        assert (picture[row * third : (row + 1) * third] < 0.1).mean() > 0.2


def test_command_line_prints_the_sizes(project, capsys):
    assert data_main([]) == 0
    printed = capsys.readouterr().out
    assert "Train batches: 5\nVal batches: 2\nTrain samples: 80\nVal samples: 20\n" in printed
    assert (project / "runs" / "sample_batch.png").stat().st_size > 1000


def test_training_reads_no_test_images(run_train, tiny_source):
    assert run_train("--set", "epochs=1") == 0
    assert set(tiny_source) == {"train"}


@pytest.mark.parametrize("loader", ["resident", "workers"])
def test_processes_share_every_batch(digits, loader):
    train = digits[0]
    whole = batches_of(BatchLoader(train, 100, shuffle=True, loader=loader), epoch=3, first_batch=11)
    shares = [
        batches_of(BatchLoader(train, 100, shuffle=True, loader=loader, rank=r, world_size=3), epoch=3, first_batch=11)
        for r in range(3)
    ]
    together = [tuple(torch.cat(parts) for parts in zip(*batch, strict=True)) for batch in zip(*shares, strict=True)]
    assert same_batches(together, whole)
    assert {len(labels) for share in shares for _, labels in share} == {33, 34, 31, 32}


def test_no_image_is_evaluated_twice(digits):
    val = digits[1]  # 143 images, the last batch has 3
    loaders = [BatchLoader(val, 20, rank=r, world_size=4) for r in range(4)]
    labels = [torch.cat([labels for _, labels in loader]) for loader in loaders]
    assert sum(map(len, labels)) == len(val)
    assert torch.equal(torch.cat(labels).sort().values, val.labels.sort().values)
