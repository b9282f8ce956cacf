import os
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from data import sources
from data.dataloader import get_dataloaders, load_test_split
from data.sources import SOURCES, read_cifar10, read_digits, stratified_split
from engine.config import Config
from engine.errors import UserError


def test_cifar10_split_is_45k_and_5k():
    labels = np.repeat(np.arange(10), 5000)
    train, val = stratified_split(labels, fraction=0.1, seed=0)
    assert (len(train), len(val)) == (45_000, 5_000)
    assert np.intersect1d(train, val).size == 0
    assert np.array_equal(np.bincount(labels[val]), np.full(10, 500))


def test_split_depends_on_the_seed_alone():
    labels = np.arange(1000) % 10
    assert np.array_equal(stratified_split(labels, 0.1, seed=1)[1], stratified_split(labels, 0.1, seed=1)[1])
    assert not np.array_equal(stratified_split(labels, 0.1, seed=1)[1], stratified_split(labels, 0.1, seed=2)[1])


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_split_leaves_neither_side_without_a_class(fraction):
    labels = np.arange(30) % 3
    kept, aside = stratified_split(labels, fraction, seed=0)
    assert set(labels[kept]) == set(labels[aside]) == {0, 1, 2}


def test_digits_statistics():
    images, _ = read_digits(Path(), "train")
    source = SOURCES["digits"]
    assert np.allclose((images / 255).mean((0, 1, 2)), source.mean, atol=5e-5)
    assert np.allclose((images / 255).std((0, 1, 2)), source.std, atol=5e-5)


def test_digits_are_never_mirrored():
    assert not SOURCES["digits"].augmentation.flip
    assert SOURCES["cifar10"].augmentation.flip


def test_kit_data_without_data(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"KIT_DATA is .* holds no cifar-10-batches-py"):
        read_cifar10(Path("data/raw"), "train")


def test_damaged_cifar10(tmp_path, monkeypatch):
    monkeypatch.delenv("KIT_DATA", raising=False)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"half")
    with pytest.raises(UserError, match="damaged or incomplete"):
        read_cifar10(tmp_path, "train")


class TestDownload:
    """The download itself is torchvision's; here it is replaced by one that writes a file and then does `ending`."""

    @pytest.fixture
    def download(self, tmp_path, monkeypatch):
        monkeypatch.delenv("KIT_DATA", raising=False)

        def start(ending):
            def fake(root, download):
                (Path(root) / "cifar-10-batches-py").mkdir()
                (Path(root) / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half")
                ending()

            monkeypatch.setattr("torchvision.datasets.CIFAR10", fake)
            sources._download_cifar10(tmp_path / "raw")

        return start

    def test_no_network(self, download, tmp_path):
        def no_network():
            raise urllib.error.URLError("Name or service not known")

        with pytest.raises(UserError, match=r"Name or service.* KIT_DATA .*--set dataset=digits"):
            download(no_network)
        assert list((tmp_path / "raw").iterdir()) == []

    def test_interrupted(self, download, tmp_path):
        def interrupt():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            download(interrupt)
        assert list((tmp_path / "raw").iterdir()) == []

    def test_whole(self, download, tmp_path):
        download(lambda: None)
        assert [path.name for path in (tmp_path / "raw").iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.skipif("KIT_DATA" not in os.environ, reason="needs the real CIFAR-10")
def test_real_cifar10(monkeypatch):
    opened = []

    def noting_open(file, *arguments, original=open, **options):
        opened.append(str(file))
        return original(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", noting_open)
    train_loader, val_loader = get_dataloaders(Config())
    assert (len(train_loader), len(val_loader)) == (352, 40)
    assert any(name.endswith("data_batch_5") for name in opened)
    assert not any(name.endswith("test_batch") for name in opened)
    pixels = np.concatenate([train_loader.dataset.images, val_loader.dataset.images]) / np.float32(255)
    assert np.allclose(pixels.mean((0, 1, 2), dtype=np.float64), SOURCES["cifar10"].mean, atol=1e-4)
    assert np.allclose(pixels.std((0, 1, 2), dtype=np.float64), SOURCES["cifar10"].std, atol=1e-4)
    assert len(load_test_split("cifar10")) == 10_000
