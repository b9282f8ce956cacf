"""Images in folders: tiny ones, written as PNG files."""

import pytest
import torch
from PIL import Image
from records import last, metrics, same

import evaluate
from data.augment import NO_AUGMENTATION
from data.dataloader import load_test_split, load_training_splits
from data.folders import FolderLoader
from engine.errors import UserError, run_script

SIZE = 16


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """Three classes of different colour: 10 images of each in train/, 4 in val/, none of them square."""
    generator = torch.Generator().manual_seed(0)
    for folder, count in (("train", 10), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / "raw" / "imagenet" / folder / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 90, (20, 24, 3), dtype=torch.uint8, generator=generator)
                pixels[..., label] += 150
                path = tmp_path / "raw" / "imagenet" / folder / name / f"{number}.png"
                Image.fromarray(pixels.numpy()).save(path)
    monkeypatch.delenv("KIT_DATA", raising=False)
    return tmp_path / "raw"


def splits(root, **options):
    return load_training_splits("imagenet", data_dir=str(root), val_fraction=0.2, image_size=SIZE, **options)


def batches(split, num_workers=0, epoch=0, first_batch=0):
    loader = FolderLoader(split, 5, shuffle=split.name == "train", num_workers=num_workers)
    loader.set_epoch(epoch, first_batch)
    return list(loader)


def equal(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


def test_splits(imagenet):
    train, val = splits(imagenet)
    test = load_test_split("imagenet", data_dir=str(imagenet), image_size=SIZE)
    assert (len(train), len(val), len(test)) == (24, 6, 12)
    assert train.source.classes == ("ant", "bee", "cat")
    assert not set(train.files) & set(val.files)
    assert {file.parts[-3] for file in train.files + val.files} == {"train"}
    assert {file.parts[-3] for file in test.files} == {"val"}
    assert val.augmentation == NO_AUGMENTATION != train.augmentation


def test_batches_are_normalised_images_of_the_size(imagenet):
    (images, labels), *_ = batches(splits(imagenet)[1])
    assert images.shape == (5, 3, SIZE, SIZE)
    assert images.is_contiguous(memory_format=torch.channels_last)
    pixels = images * torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1) + torch.tensor((0.485, 0.456, 0.406)).view(
        3, 1, 1
    )
    assert pixels.min() + 1e-6 >= 0
    assert pixels.max() <= 1 + 1e-6
    assert torch.equal(pixels.mean((2, 3)).argmax(1), labels)  # the colour tells the class


@pytest.mark.parametrize("rand_augment", [0, 9])
def test_batches_follow_from_seed_and_epoch(imagenet, rand_augment):
    train, val = splits(imagenet, rand_augment=rand_augment)
    state = torch.get_rng_state()
    first = batches(train)
    assert equal(first, batches(train))
    assert equal(first, batches(train, num_workers=2))
    assert equal(first[3:], batches(train, first_batch=3))
    assert not equal(first, batches(train, epoch=1))
    assert equal(batches(val), batches(val, epoch=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_image_differs_between_epochs(imagenet):
    train, val = splits(imagenet)
    assert not torch.equal(train[0, 3][0], train[1, 3][0])
    assert torch.equal(val[0, 3][0], val[1, 3][0])


def test_train_interrupt_free_run_and_evaluation(imagenet, run_train, project, capsys):
    settings = ["--set", "dataset=imagenet", f"data_dir={imagenet}", "num_classes=3", "image_size=16", "epochs=2"]
    settings += ["val_fraction=0.2", "batch_size=8", "num_workers=0"]
    assert run_train(*settings) == 0, capsys.readouterr().err
    once = last(), metrics()
    assert run_train("--fresh", *settings) == 0
    assert same(last()["model"], once[0]["model"])
    assert run_script(lambda: evaluate.main(["--split", "val"])) == 0
    assert run_script(lambda: evaluate.main([])) == 0
    assert "12 images" in capsys.readouterr().out


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_image_is_named(imagenet, num_workers):
    train, _ = splits(imagenet)
    train.files[0].write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        batches(train, num_workers)
    assert str(error.value).startswith(f"{train.files[0]} cannot be read as an image")
    assert "\n" not in str(error.value)


def test_missing_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("KIT_DATA", raising=False)
    with pytest.raises(UserError, match=r"imagenet/train does not exist; put the images there"):
        splits(tmp_path)


def test_class_without_images(imagenet):
    (imagenet / "imagenet" / "train" / "dog").mkdir()
    with pytest.raises(UserError, match="dog"):
        splits(imagenet)


def test_test_images_of_other_classes(imagenet):
    (imagenet / "imagenet" / "val" / "bee").rename(imagenet / "imagenet" / "val" / "dog")
    with pytest.raises(UserError, match="both need a folder for each class"):
        load_test_split("imagenet", data_dir=str(imagenet), image_size=SIZE)


def test_folders_do_not_fit_into_memory(imagenet):
    with pytest.raises(UserError, match="set loader: workers"):
        FolderLoader(splits(imagenet)[0], 5, loader="resident")
