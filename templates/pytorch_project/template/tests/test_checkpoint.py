import errno
import os
import pickle
import random
import resource
import socket
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from engine import checkpoint as ckpt
from engine.errors import UserError
from engine.lock import exclusive
from engine.rng import rng_state, seed_everything, set_rng_state


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A small but complete checkpoint in checkpoints/last.pt."""
    monkeypatch.chdir(tmp_path)
    content = {key: {} for key in ckpt.REQUIRED_KEYS} | {"model": {"weight": torch.arange(1000.0)}, "run_id": "run-1"}
    ckpt.save_checkpoint(content, ckpt.LAST)
    return content


def files_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_round_trip(saved):
    loaded = ckpt.load_checkpoint(ckpt.LAST)
    assert loaded.keys() == saved.keys()
    assert torch.equal(loaded["model"]["weight"], torch.arange(1000.0))
    assert files_in("checkpoints") == ["last.pt"]


def test_file_has_the_usual_permissions(saved):
    ckpt.LAST.with_name("other").write_text("")
    assert ckpt.LAST.stat().st_mode == ckpt.LAST.with_name("other").stat().st_mode


@pytest.mark.parametrize("limit", [0, 3000])
def test_full_disk_keeps_the_old_checkpoint(saved, limit):
    before = ckpt.LAST.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # no file may grow beyond it: writing fails for real
    try:
        with pytest.raises(UserError, match=r"last\.pt could not be written .*the checkpoint saved before is kept"):
            ckpt.save_checkpoint(saved | {"epoch": 2}, ckpt.LAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ckpt.LAST.read_bytes() == before
    assert files_in("checkpoints") == ["last.pt"]


def test_full_disk_is_called_that(saved, monkeypatch):
    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="No space left on device"):
        ckpt.save_checkpoint(saved, ckpt.LAST)
    assert files_in("checkpoints") == ["last.pt"]


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("proof",))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"half",
        b"PK\x03\x04 looks like a zip file",
        pickle.dumps({"model": 1}),
        pickle.dumps(RunsCode()),
    ],
)
def test_damaged_or_foreign_file(saved, content):
    ckpt.LAST.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.pt is .*--fresh") as error:
        ckpt.load_checkpoint(ckpt.LAST)
    assert "\n" not in str(error.value)
    assert not Path("proof").exists()


def test_half_of_a_checkpoint(saved):
    whole = ckpt.LAST.read_bytes()
    ckpt.LAST.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        ckpt.load_checkpoint(ckpt.LAST)


def test_changed_bytes_are_noticed(saved):
    content = bytearray(ckpt.LAST.read_bytes())
    content[len(content) // 2] ^= 1
    ckpt.LAST.write_bytes(content)
    assert not torch.equal(torch.load(ckpt.LAST, weights_only=True)["model"]["weight"], torch.arange(1000.0))
    with pytest.raises(ckpt.DamagedError, match=r"the checksum of .* is wrong"):
        ckpt.load_checkpoint(ckpt.LAST)


def test_ctrl_c_while_writing_is_no_error(saved, monkeypatch):
    before = ckpt.LAST.read_bytes()

    class Interrupted:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if len(data) > 1000:
                raise KeyboardInterrupt
            return self.file.write(data)

    monkeypatch.setattr(torch, "save", lambda content, file, save=torch.save: save(content, Interrupted(file)))
    with pytest.raises(KeyboardInterrupt):
        ckpt.save_checkpoint(saved, ckpt.LAST)
    assert ckpt.LAST.read_bytes() == before
    assert files_in("checkpoints") == ["last.pt"]


@pytest.fixture
def one_process():
    """The process group that DistributedDataParallel wants, of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def network():
    """Has a part with the name that wrappers give to what they wrap."""
    return nn.Sequential(OrderedDict(module=nn.Linear(2, 3), norm=nn.BatchNorm1d(3)))


WRAPPERS = {
    "plain": lambda model: model,
    "compiled": torch.compile,
    "parallel": DistributedDataParallel,
    "both": lambda model: torch.compile(DistributedDataParallel(torch.compile(model))),
    "part": lambda model: nn.Sequential(OrderedDict(module=torch.compile(model.module), norm=model.norm)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_are_those_of_the_plain_model(one_process, wrapper):
    model, wrapped = network(), WRAPPERS[wrapper](network())
    expected = [name for name, _ in model.state_dict().items()]
    assert list(ckpt.plain_weights(wrapped)) == expected

    # As the kit writes it, and as somebody else would have; into either of the two.
    for weights in (ckpt.plain_weights(wrapped), wrapped.state_dict()):
        ckpt.load_weights(model, {"model": weights, "run_id": "run-1"})
        assert all(map(torch.equal, model.state_dict().values(), wrapped.state_dict().values()))
    other = network()
    ckpt.load_weights(wrapped, {"model": other.state_dict(), "run_id": "run-1"})
    assert all(map(torch.equal, other.state_dict().values(), wrapped.state_dict().values()))


def test_other_weights_do_not_fit(one_process):
    weights = DistributedDataParallel(nn.Sequential(OrderedDict(stem=nn.Linear(2, 3)))).state_dict()
    with pytest.raises(UserError, match=r"does not fit the present code of the model .*stem\.weight"):
        ckpt.load_weights(network(), {"model": weights, "run_id": "run-1"})


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_checkpoint_of_something_else(saved, content):
    torch.save(content, ckpt.LAST)
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        ckpt.load_checkpoint(ckpt.LAST)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist; train first"):
        ckpt.load_checkpoint(tmp_path / "best.pt")


def test_archive_keeps_everything(saved):
    ckpt.CONFIG.write_text("seed: 1\n")
    assert ckpt.archive_checkpoints() == Path("checkpoints/archive/run-1")
    assert files_in("checkpoints/archive/run-1") == ["config.yaml", "last.pt"]
    assert files_in("checkpoints") == ["archive"]
    ckpt.save_checkpoint(saved, ckpt.LAST)
    assert ckpt.archive_checkpoints() == Path("checkpoints/archive/run-1-again")
    assert ckpt.archive_checkpoints() is None


def test_archive_of_a_damaged_checkpoint(saved):
    ckpt.LAST.write_bytes(b"half")
    folder = ckpt.archive_checkpoints()
    assert (folder / "last.pt").read_bytes() == b"half"


def test_random_state_round_trip(tmp_path):
    seed_everything(3)
    torch.save(rng_state(), tmp_path / "rng.pt")
    draws = [random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()]
    seed_everything(99)
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()] == draws


def test_only_one_process_trains_in_a_folder(tmp_path):
    with exclusive(tmp_path), pytest.raises(UserError, match="another process is training"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_a_child_does_not_keep_the_lock(tmp_path):
    # As loader workers are after a kill of the training process: they live a few seconds longer.
    ours, theirs = socket.socketpair()
    with exclusive(tmp_path):
        child = os.fork()
        if not child:
            ours.close()
            theirs.send(b"here")
            theirs.recv(1)  # until the other end is closed
            os._exit(0)
        theirs.close()
        assert ours.recv(4) == b"here"
    try:
        with exclusive(tmp_path):
            pass
    finally:
        ours.close()
        os.waitpid(child, 0)
