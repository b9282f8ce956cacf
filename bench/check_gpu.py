"""Whether a GPU trains as the CPU's tests say: the scaffold on digits, in each precision, compiled, shared, sharded.

python bench/check_gpu.py [--device cpu]

Each row is a `train.py` of two epochs in a folder of its own; its first losses are compared with those of the plain
row of the same model (their largest relative difference), its last validation accuracy with nothing but chance. One
GPU is enough: two processes share it over gloo, and NCCL gets a group of one, through which DDP and FSDP2 still send
everything. Exit code 0: every row trained, and those that must give the same losses do; 1: not so; 2: no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve()
TEMPLATE = HERE.parents[1] / "templates" / "pytorch_project" / "template"
MODELS = {
    "cnn": ["model=cnn", "dataset=digits", "batch_size=64"],
    "vit": ["model=vit", "variant=micro", "patch_size=8", "dataset=digits", "batch_size=64", "optimizer=adamw"],
}
FIXED = ["epochs=2", "log_every=1", "num_classes=10"]
COMPARED = 10  # first losses
ROUNDING, HALF = 1e-3, 0.1  # largest relative difference of the losses: of fp32 in another order, of 8 bits and more
LEAST_ACCURACY = 0.3  # of ten classes


@dataclass(frozen=True)
class Row:
    """A way to train.

    Args:
        model: a key of MODELS.
        settings: beyond those of the plain row.
        group: backend and number of the processes; empty for a process on its own.
        bound: largest relative difference of a loss from that of the first row with the same `like`.
        devices: that can do it.
        like: the model, unless given.
    """

    model: str
    settings: Sequence[str] = ()
    group: tuple[str, int] | None = None
    bound: float = ROUNDING
    devices: Sequence[str] = ("cuda", "cpu")
    like: str = ""

    def __str__(self) -> str:
        """As it is printed."""
        group = [f"{self.group[1]} process{'es' * (self.group[1] > 1)}, {self.group[0]}"] if self.group else []
        return ", ".join([self.model, *self.settings, *group])


NCCL, TWO = ("nccl", 1), ("gloo", 2)
GPU, WINDOWS = ["cuda"], ["batch_size=32", "accumulation_steps=2"]
ROWS = (
    Row("cnn"),
    Row("cnn", ["precision=tf32"], bound=HALF, devices=GPU),
    Row("cnn", ["precision=bf16"], bound=HALF),
    Row("cnn", ["precision=fp16"], bound=HALF, devices=GPU),
    Row("cnn", ["compile=true"]),
    Row("cnn", ["compile=true", "precision=bf16"], bound=HALF),
    Row("cnn", ["sync_batchnorm=true"], TWO, devices=GPU),
    Row("cnn", [], NCCL, devices=GPU),
    Row("cnn", ["ema_decay=0.99"], NCCL, devices=GPU),
    Row("vit"),
    Row("vit", ["precision=fp16"], bound=HALF, devices=GPU),
    Row("vit", ["compile=true"]),
    Row("vit", ["compile=true", "precision=bf16"], bound=HALF),
    Row("vit", [], TWO),
    Row("vit", ["compile=true"], TWO),
    Row("vit", WINDOWS, like="windows"),
    Row("vit", WINDOWS, TWO, like="windows"),
    Row("vit", [], NCCL, devices=GPU),
    Row("vit", ["precision=fp16"], NCCL, bound=HALF, devices=GPU),
    Row("vit", ["shard=true"], NCCL, devices=GPU),
    Row("vit", ["shard=true", "precision=bf16"], NCCL, bound=HALF, devices=GPU),
    Row("vit", ["shard=true", "compile=true"], NCCL, devices=GPU),
    Row("vit", ["shard=true"], TWO, devices=["cpu"]),  # gloo cannot scatter what is on a GPU
)


def train_shared(backend: str, argv: list[str]) -> int:
    """`train.py` in a process of a group, even if that is alone in it, on the first GPU; the exit code."""
    import contextlib

    import torch.distributed as dist

    sys.path.insert(0, str(TEMPLATE))
    import train
    from engine.errors import run_script
    from engine.parallel import World

    class Shared(World):
        is_shared = True

    @contextlib.contextmanager
    def join(_device: str) -> Iterator[World]:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo" if backend == "gloo" else f"cpu:gloo,cuda:{backend}")
        yield Shared(rank, size)
        dist.barrier()
        dist.destroy_process_group()

    train.join_world = join
    return run_script(lambda: train.main(argv))


def run(row: Row, device: str, folder: Path) -> tuple[list[float], float, float]:
    """First losses, last validation accuracy and seconds of a row.

    Raises:
        RuntimeError: it ended with another code than 0; the message has its first error.
    """
    folder.mkdir(parents=True)
    settings = [f"device={device}", "precision=fp32", *FIXED, *MODELS[row.model], *row.settings]
    options = ["--config", str(TEMPLATE / "config.yaml")] + [part for one in settings for part in ("--set", one)]
    command = [sys.executable, str(TEMPLATE / "train.py"), *options]
    if row.group:
        backend, size = row.group
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        command = [*torchrun, str(HERE), "--process-of", backend, *options]
    started = time.monotonic()
    with (folder / "output.txt").open("w") as output:
        code = subprocess.run(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    seconds = time.monotonic() - started
    if code:
        lines = (folder / "output.txt").read_text().splitlines()
        said = [line for line in lines if "Error: " in line or "error: " in line] or lines or ["nothing"]
        raise RuntimeError(f"exit code {code}: {said[0].strip()[:300]}")
    metrics = next(folder.glob("runs/*/metrics.jsonl")).read_text().splitlines()
    entries = [json.loads(line) for line in metrics]
    losses = [entry["loss"] for entry in entries if entry["kind"] == "train"][:COMPARED]
    accuracy = [entry["val_accuracy"] for entry in entries if entry["kind"] == "epoch"][-1]
    return losses, accuracy, seconds


def main() -> int:
    """Print a line for every row; the exit code."""
    if "--process-of" in sys.argv:
        start = sys.argv.index("--process-of")
        return train_shared(sys.argv[start + 1], sys.argv[start + 2 :])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--jobs", type=int, default=4, help="rows at a time (default 4)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("check_gpu needs a GPU, and PyTorch finds none here", file=sys.stderr)
        return 2
    rows = [row for row in ROWS if arguments.device in row.devices]
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {arguments.jobs} rows at a time\n")
    print("| settings | losses differ by | validation accuracy | seconds | |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        started = [pool.submit(run, row, arguments.device, Path(folder) / str(n)) for n, row in enumerate(rows)]
        plain: dict[str, list[float]] = {}
        bad = 0
        for row, future in zip(rows, started, strict=True):
            try:
                losses, accuracy, seconds = future.result()
            except RuntimeError as error:
                bad += 1
                print(f"| {row} | | | | {error} |", flush=True)
                continue
            base = plain.setdefault(row.like or row.model, losses)
            apart = max(abs(a - b) / b for a, b in zip(losses, base, strict=True))
            verdict = "" if apart <= row.bound and accuracy >= LEAST_ACCURACY else "NOT AS IT SHOULD BE"
            bad += bool(verdict)
            print(f"| {row} | {apart:.1e} | {accuracy:.1%} | {seconds:.0f} | {verdict} |", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
