"""Nothing of the user's is changed by a watched run."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from pathlib import Path

import pytest

from tests.verify.trace.runs import TRAIN, watched
from verify.trace.mirror import Mirror, put_back

LARGE = 2 * 2**20

WRITES = (
    TRAIN
    + """
train()
import json, os, shutil, sqlite3, subprocess, sys
import numpy

project, outside = sys.argv[1], sys.argv[2]
DONE = []


def note(name):
    DONE.append(name)


torch.save(model.state_dict(), "small.pt")
torch.save(model.state_dict(), "large.pt")
torch.save(model.state_dict(), "large.anything")
with open("train.log", "a") as file:
    file.write("more")
with open("large.log", "a") as file:
    file.write("more")
assert os.path.getsize("large.log") == 2 * 2**20 + 4
with open("large.dat", "r+b") as file:
    file.write(b"changed")
numpy.save("array.npy", numpy.zeros(3))
numpy.memmap("large.map", dtype="uint8", mode="r+", shape=(2 * 2**20,))[:5] = 7
note("links")

with open(project + "/train.log", "w") as file:
    file.write("by its absolute path")
with open(project + "/new.txt", "w") as file:
    file.write("new")
os.makedirs(project + "/made/by/path", exist_ok=True)
with open(project + "/made/by/path/file", "w") as file:
    file.write("new")
os.remove(project + "/doomed.txt")
shutil.rmtree(project + "/doomed")
note("absolute")

with open("new.tmp", "w") as file:
    file.write("new")
os.replace("new.tmp", "large.replaced")
os.rename("renamed.dat", "moved.dat")
note("renamed")

assert os.path.islink("many")
with open("many/file7", "a") as file:
    file.write("more")
with open("many/new", "w") as file:
    file.write("new")
os.remove("many/file8")
os.makedirs("many/deep/er")
assert len(os.listdir("many")) == 302 and "file9" in os.listdir("many")
shutil.rmtree("many_runs")
os.makedirs("many_runs")
note("folders")

for name in ("small.db", "large.db", "large.other"):
    with sqlite3.connect(name) as connection:
        connection.execute("insert into t values (1)")
note("sqlite")

with open("../data/numbers.txt", "a") as file:
    file.write("more")
with open("../data/new.txt", "w") as file:
    file.write("new")
with open(outside + "/kept.txt", "w") as file:
    file.write("changed")
subprocess.run([sys.executable, "-c", f"open({outside!r} + '/kept.txt', 'a').write('again')"], check=True)
subprocess.run(["sh", "-c", "echo more >> train.log; rm -rf many"], check=True)
note("outside")
print("DONE", *DONE)
"""
)


def state(folder: Path) -> dict[str, str]:
    """Every file of a folder with a hash of its bytes; folders too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def database(path: Path, size: int = 0) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (x)")
        connection.execute("insert into t values (?)", (b"x" * size,))
    connection.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is not the system's temporary one, with a project and what lies beside it."""
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    home = tmp_path / "home"
    for name in ("project/many", "project/many_runs", "project/doomed/deep/empty", "data", "outside"):
        (home / name).mkdir(parents=True)
    project = home / "project"
    for name in ("small.pt", "train.log", "array.npy", "doomed.txt", "doomed/a", "doomed/deep/b", "renamed.dat"):
        (project / name).write_text("as it was")
    for name in ("large.pt", "large.anything", "large.log", "large.dat", "large.map", "large.replaced"):
        (project / name).write_bytes(b"0" * LARGE)
    for number in range(301):
        (project / "many" / f"file{number}").write_text("data")
        (project / "many_runs" / f"file{number}").write_text("data")
    database(project / "small.db")
    database(project / "large.db", LARGE)
    database(project / "large.other", LARGE)
    (home / "data" / "numbers.txt").write_text("1 2 3")
    (home / "outside" / "kept.txt").write_text("kept")
    return home


def test_every_byte_is_as_before(home: Path):
    (home / "project" / "train.py").write_text(WRITES, encoding="utf-8")
    before = state(home)
    places = (str(home / "project"), str(home / "outside"))
    record = watched(home / "project", WRITES, *places, own_process=True)
    assert "DONE links absolute renamed folders sqlite outside" in record.run["log"]
    assert state(home) == before
    assert str(home / "outside" / "kept.txt") in record.run["restored"]
    assert not record.run["made"]
    assert not list((home.parent / "temporary").iterdir())


def test_what_libraries_write_by_themselves_is_copied(tmp_path: Path):
    project, scratch = tmp_path / "project", tmp_path / "scratch"
    (project / ".git").mkdir(parents=True)
    scratch.mkdir()
    for name in ("model.safetensors", "data.bin2", "small.bin2"):
        (project / name).write_bytes(b"0" * (10 if name.startswith("small") else LARGE))
    copy = Mirror(project, scratch, frozenset({"small.bin2"})).copy
    assert {path.name: path.is_symlink() for path in copy.iterdir()} == {
        "model.safetensors": False,
        "data.bin2": True,
        ".git": True,
    }
    assert copy.parent.name == tmp_path.name
    assert (copy / ".." / "project").resolve() == copy.resolve(), "the project is not reached through its parent"


def test_the_first_of_several_copies_is_put_back(tmp_path: Path):
    backup, project = tmp_path / "backup", tmp_path / "project"
    backup.mkdir()
    project.mkdir()
    changed, new, outside = project / "changed", project / "new", tmp_path / "outside"
    for path, text in (
        (backup / "1", "first"),
        (backup / "2", "second"),
        (changed, "third"),
        (new, "x"),
        (outside, "x"),
    ):
        path.write_text(text)
    entries = [
        {"path": str(changed), "copy": str(backup / "1"), "existed": True, "folder": False},
        {"path": str(changed), "copy": str(backup / "2"), "existed": True, "folder": False},
        {"path": str(new), "copy": "", "existed": False, "folder": False},
        {"path": str(outside), "copy": "", "existed": False, "folder": False},
    ]
    (backup / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert put_back(backup, project) == ([str(changed)], [str(outside)])
    assert changed.read_text() == "first"
    assert not new.exists()


def test_results_beside_the_project_stay_in_the_copy_wherever_it_lies(tmp_path: Path):
    """`../models` of a project in a folder for temporary files, which everybody else may write to."""
    source = tmp_path / "repository" / "src"
    models = tmp_path / "repository" / "models" / "train"
    source.mkdir(parents=True)
    models.mkdir(parents=True)
    (models / "epoch_1.pth").write_bytes(b"mine")
    text = TRAIN + "import os\ntrain()\nfor n in (1, 2):\n    torch.save(model, f'../models/train/epoch_{n}.pth')\n"
    text += "os.makedirs('../logs', exist_ok=True)\nopen('../logs/run.txt', 'w').write('done')\n"
    before = state(tmp_path / "repository" / "models")
    record = watched(source, text)
    assert record.run["code"] == 0
    assert state(tmp_path / "repository" / "models") == before
    assert not (tmp_path / "repository" / "logs").exists()
