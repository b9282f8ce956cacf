"""The template's data pipeline against torchvision's PIL transforms in a DataLoader, with the same augmentation.

    python bench/bench_data_pipeline.py            two minutes
    python bench/bench_data_pipeline.py --quick    half a minute, noisier

Both sides deliver shuffled, augmented, normalised float batches of 128 from random uint8 images of CIFAR-10's shape:
random crop (32, padding 4), horizontal flip, normalisation, and then the same with colour jitter (0.2, 0.2). Measured
are whole epochs after a warm-up epoch, loader workers already started; CPU time is that of the process and its workers.
Our side uses one thread by default, so that it competes for no core that the model could compute on.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the template's own scripts do

import psutil
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "pytorch_project" / "template"
sys.path.insert(0, str(TEMPLATE))

from data.loader import BatchLoader, Split  # noqa: E402
from data.sources import SOURCES  # noqa: E402

BATCH_SIZE = 128
WORKERS = 2
TARGETS = {"crop, flip": (10, 5), "crop, flip, jitter": (4, 4)}  # least ratio per CPU-second, per wall second


class PilImages(Dataset):
    """The images as torchvision's own data sets hand them out: a PIL image through a Compose."""

    def __init__(self, images: Tensor, transform: transforms.Compose) -> None:
        self.images, self.transform = images.numpy(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), 0


@dataclass
class Speed:
    """Images a second: of CPU time, and of wall time."""

    cpu: float
    wall: float


def peer_loader(images: Tensor, jitter: bool, workers: int) -> DataLoader:
    source = SOURCES["cifar10"]
    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        *([transforms.ColorJitter(brightness=0.2, contrast=0.2)] if jitter else []),
        transforms.ToTensor(),
        transforms.Normalize(source.mean, source.std),
    ]
    dataset = PilImages(images, transforms.Compose(steps))
    return DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def our_loader(images: Tensor, jitter: bool) -> BatchLoader:
    source = SOURCES["cifar10"]
    augmentation = source.augmentation if jitter else replace(source.augmentation, brightness=0.0, contrast=0.0)
    labels = torch.zeros(len(images), dtype=torch.int64)
    return BatchLoader(
        Split("train", images, labels, source, augmentation, ""), BATCH_SIZE, shuffle=True, loader="resident"
    )


def cpu_seconds() -> float:
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def measure(loader: Iterable, image_count: int, seconds: float, repeats: int) -> Speed:
    """Medians over `repeats`; each is as many epochs as fit in `seconds`, at least one."""
    for _ in loader:  # warm-up: workers start, memory is allocated
        pass
    speeds = []
    for _ in range(repeats):
        epochs, cpu, start = 0, cpu_seconds(), time.perf_counter()
        while time.perf_counter() - start < seconds or epochs == 0:
            for _ in loader:
                pass
            epochs += 1
        wall = time.perf_counter() - start
        speeds.append(Speed(cpu=epochs * image_count / (cpu_seconds() - cpu), wall=epochs * image_count / wall))
    return Speed(statistics.median(s.cpu for s in speeds), statistics.median(s.wall for s in speeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and repeats")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of our side (default 1)")
    arguments = parser.parse_args()
    image_count, seconds, repeats = (4_000, 0.3, 3) if arguments.quick else (20_000, 1.0, 5)

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (image_count, 32, 32, 3), dtype=torch.uint8)
    print(
        f"{image_count:,} images, batches of {BATCH_SIZE}, {repeats} repeats, {arguments.threads} thread(s); ", end=""
    )
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {psutil.cpu_count()} cores\n")
    for name, (cpu_target, wall_target) in TARGETS.items():
        jitter = "jitter" in name
        peers = {workers: peer_loader(images, jitter, workers) for workers in (0, WORKERS)}
        speeds = {workers: measure(loader, image_count, seconds, repeats) for workers, loader in peers.items()}
        del peers  # ends the workers
        ours = measure(our_loader(images, jitter), image_count, seconds, repeats)
        print(f"{name + ', normalise':36s}{'images / CPU-second':>20s}{'images / second':>18s}")
        for workers, speed in speeds.items():
            print(f"  PIL transforms, {workers} workers{'':10s}{speed.cpu:>20,.0f}{speed.wall:>18,.0f}")
        print(f"  ours{'':30s}{ours.cpu:>20,.0f}{ours.wall:>18,.0f}")
        # Against the better of the two in each column.
        cpu_ratio = ours.cpu / max(speed.cpu for speed in speeds.values())
        wall_ratio = ours.wall / max(speed.wall for speed in speeds.values())
        print(f"  ratio{'':29s}{cpu_ratio:>19.1f}x{wall_ratio:>17.1f}x")
        print(f"  wanted at least{'':19s}{cpu_target:>19d}x{wall_target:>17d}x\n")


if __name__ == "__main__":
    main()
