"""Scripts that do what scripts do: crash, wait, fork, print, hide their training in other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.verify.trace.runs import PLAIN, TRAIN, watched, write
from verify.report import Check, Report, Status
from verify.trace.launch import DEFAULT, WatchError, find_program, watch
from verify.watch import judge


def only(report: Report, code: str) -> Check:
    """The one finding of a rule."""
    (check,) = [c for c in report.checks if c.code == code and c.status not in (Status.PASS, Status.SKIP)]
    return check


def line_of(text: str, part: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), start=1) if part in line)


def test_a_crash_before_the_first_step_could_not_be_checked(tmp_path: Path):
    text = "import torch\n\n\ndef prepare():\n    return {}['data']\n\n\nprepare()\n"
    report = judge(watched(tmp_path, text), ["RUN"])
    check = only(report, "RUN071")
    assert (report.exit_code, check.status, check.location) == (2, Status.ERROR, "train.py:5")
    assert "KeyError" in check.measured


def test_a_crash_after_steps_is_a_failure(tmp_path: Path):
    text = TRAIN + "train()\nraise ValueError('the end\\nof it')\n"
    report = judge(watched(tmp_path, text), ["RUN"])
    check = only(report, "RUN071")
    assert report.exit_code == 1
    assert check.location == f"train.py:{line_of(text, 'raise')}"
    assert check.measured == "ValueError: the end"


def test_a_missing_import_is_named(tmp_path: Path):
    report = judge(watched(tmp_path, "import os\nimport no_such_package.part\n"), ["RUN"])
    check = only(report, "RUN073")
    assert (report.exit_code, check.location) == (2, "train.py:2")
    assert "no_such_package" in check.hint
    assert [c.code for c in report.of(Status.FAIL, Status.ERROR)] == ["RUN073"]


def test_nobody_answers_a_question(tmp_path: Path):
    report = judge(watched(tmp_path, "answer = input('Go on? ')\n"), ["RUN"])
    assert report.exit_code == 2
    assert only(report, "RUN075").location == "train.py:1"


def test_an_endless_script_is_ended(tmp_path: Path):
    begin = time.monotonic()
    text = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n    time.sleep(0.1)\n"
    record = watched(tmp_path, text, cut=replace(PLAIN, timeout=2.0))
    assert time.monotonic() - begin < 60
    assert record.run["timed_out"]
    assert judge(record, ["RUN"]).exit_code == 2


ODD = (
    """
import os, signal, sys
assert sys.stdin.read() == ""
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
for _ in range(20):
    print("x" * 2**20)
os.chdir("/")
"""
    + TRAIN
    + """
train(1)
child = os.fork()
if child == 0:
    train(1)
    os._exit(3)
os.waitpid(child, 0)
os.chdir(os.path.dirname(os.path.abspath(__file__)))
train(1)
print("last words")
sys.exit(0)
train(50)
"""
)


@pytest.mark.slow
def test_a_script_may_do_odd_things(tmp_path: Path):
    record = watched(tmp_path, ODD, own_process=True)
    assert record.run["code"] == 0
    assert "last words" in record.run["log"]
    assert len(record.steps) == 8, "two epochs of the parent; what the child did is its own business"
    assert {step["loc"] for step in record.steps} == {f"train.py:{line_of(ODD, 'optimizer.step')}"}
    assert not record.of("recorder_error")


SPAWNED = (
    """
import torch.multiprocessing as mp


def work(rank):
"""
    + "".join(f"    {line}\n" if line else "\n" for line in TRAIN.splitlines())
    + """
    train()


if __name__ == "__main__":
    mp.spawn(work, nprocs=1)
"""
)


@pytest.mark.slow
def test_training_in_a_spawned_process_is_seen(tmp_path: Path):
    record = watched(tmp_path, SPAWNED, own_process=True)
    assert record.run["code"] == 0, record.run["log"]
    assert len(record.steps) == 8


@pytest.mark.slow
def test_loaders_that_would_spawn_their_workers(tmp_path: Path):
    text = TRAIN.replace("shuffle=True)", "shuffle=True, num_workers=2, multiprocessing_context='spawn')")
    text += "\nif __name__ == '__main__':\n    train()\n"
    record = watched(tmp_path, text)
    assert record.run["code"] == 0, record.run["log"]
    assert len(record.steps) == 8


NAMES = ("verify", "kit", "data", "events", "torch_hooks", "files", "recorder", "bootstrap")


@pytest.mark.slow
def test_a_package_with_modules_of_our_names(tmp_path: Path):
    for name in NAMES:
        write(tmp_path, f"MINE = {name!r}\n", f"{name}.py")
    write(tmp_path, "", "pkg/__init__.py")
    text = "import " + ", ".join(NAMES) + f"\nassert [m.MINE for m in ({', '.join(NAMES)})] == {list(NAMES)}\n" + TRAIN
    write(tmp_path, text + "train()\n", "pkg/train.py")
    record = watch(["python", "-m", "pkg.train"], folder=tmp_path, cut=replace(PLAIN, probe_seconds=10.0))
    assert record.run["code"] == 0, record.run["log"]
    assert {step["loc"].split(":")[0] for step in record.steps} == {"pkg/train.py"}
    assert record.probe("model")
    assert "pkg/train.py" in record.sources


@pytest.mark.slow
def test_a_shell_that_starts_the_script_by_its_absolute_path(tmp_path: Path):
    script = write(tmp_path, TRAIN + "train()\n", "code/train.py")
    (tmp_path / "elsewhere").mkdir()
    command = f"cd elsewhere && {sys.executable} {script} && echo over"
    record = watch(["bash", "-c", command], folder=tmp_path, cut=PLAIN)
    assert record.run["log"].strip() == "over"
    assert {step["loc"].split(":")[0] for step in record.steps} == {"code/train.py"}


CUDA = (
    TRAIN.replace("model = ", "device = torch.device('cuda')\nmodel = ")
    .replace("def train", "model.cuda()\nweights = torch.ones(2, device=device)\n\n\ndef train")
    .replace("model(a), b)", "model(a.to(device)), b.to('cuda', non_blocking=True), weight=weights)")
)


def test_a_script_for_cuda_goes_on_without_it(tmp_path: Path):
    record = watched(tmp_path, CUDA + "train()\nassert weights.device.type == 'cpu'\n")
    report = judge(record, ["RUN"])
    assert record.run["code"] == 0, record.run["log"]
    assert len(record.steps) == 8
    assert only(report, "RUN072").status is Status.WARN
    assert only(report, "RUN072").location == f"train.py:{line_of(CUDA, 'model.cuda')}"
    assert report.exit_code == 0


OFF = TRAIN.replace("def train", "scaler = torch.amp.GradScaler('cuda', enabled=False)\n\n\ndef train")
OFF = OFF.replace("loss.backward()", "scaler.scale(loss).backward()").replace(
    "optimizer.step()", "scaler.step(optimizer) if ASKED else optimizer.step()"
)


@pytest.mark.parametrize(("asked", "found"), [("scaler.is_enabled()", False), ("epoch > 9", True)])
def test_a_scaler_that_is_off_may_be_left_out_by_who_looks_whether_it_is(tmp_path: Path, asked: str, found: bool):
    report = judge(watched(tmp_path, OFF.replace("ASKED", asked) + "train()\n"), ["AMP035"])
    assert any(check.status is Status.FAIL for check in report.checks) is found


LOOKS_LIKE_CUDA = """
import os
if os.environ.get("CUDA_VISIBLE_DEVICES") != "":
    torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
"""


def test_probes_of_a_run_on_a_gpu_are_made_on_the_cpu(tmp_path: Path):
    script = TRAIN.replace("def train", LOOKS_LIKE_CUDA + "\n\ndef train") + "train()\n"
    record = watched(tmp_path, script, cut=replace(PLAIN, probe_seconds=DEFAULT.probe_seconds))
    probes = record.of("probe")
    assert {event["name"] for event in probes} == {"data", "loop", "tokens", "model"}
    assert all("result" in event for event in probes)
    assert "probed in a second start, on the CPU" in record.run["notes"]


@pytest.mark.slow
@pytest.mark.parametrize("late", ["", "import time\ntime.sleep(0.1)\n"])
def test_training_in_a_thread_is_seen(tmp_path: Path, late: str):
    text = TRAIN + f"import threading\nthread = threading.Thread(target=train)\nthread.start()\n{late}thread.join()\n"
    record = watched(tmp_path, text)
    assert record.run["code"] == 0, record.run["log"]
    assert len(record.steps) == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, number: int):
    (tmp_path / "project").mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    mark = tmp_path / "pid"
    text = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\nwhile True:\n    time.sleep(0.1)\n"
    write(tmp_path / "project", text)

    def listen() -> None:  # a background process inherits an ignored Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [sys.executable, "-m", "kit", "watch", "--", "python", "train.py"]
    paths = {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        command, cwd=tmp_path / "project", env={**os.environ, **paths}, preexec_fn=listen,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    limit = time.monotonic() + 60
    while not mark.exists() or not mark.read_text():
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, b"")
    assert "Traceback" not in errors.decode()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert not [path for path in temporary.iterdir() if path.name.startswith("kit-watch")]


def test_the_program_is_found_before_anything_runs(tmp_path: Path):
    write(tmp_path, "", "train.py")
    for command, problem in (
        ([], "nothing to watch"),
        (["no-such-program"], "no program 'no-such-program'"),
        (["python", "missing.py"], "no script 'missing.py'"),
        (["python", "-u", "-W", "ignore", "missing.py"], "no script 'missing.py'"),
    ):
        with pytest.raises(WatchError, match=problem):
            find_program(command, tmp_path)
    assert find_program(["train.py", "--lr=1"], tmp_path) == [sys.executable, "train.py", "--lr=1"]
    assert find_program(["python", "-m", "pkg.train"], tmp_path)[1:] == ["-m", "pkg.train"]
    assert find_program(["python", "train.py"], tmp_path)[1:] == ["train.py"]


def test_a_run_without_torch_trained_nothing(tmp_path: Path):
    report = judge(watched(tmp_path, "print('hello')\n", own_process=True))
    assert report.exit_code == 2
    assert only(report, "RUN074").measured == "PyTorch was never imported"
    assert not report.of(Status.FAIL)


SLOW = """
class Slow(nn.Linear):
    def forward(self, x):
        time.sleep(0.3)
        return super().forward(x)


model = nn"""


@pytest.mark.slow
def test_a_heavy_model_gets_shorter_epochs_so_that_more_of_them_are_seen(tmp_path: Path):
    text = "import time\n" + TRAIN.replace("\nmodel = nn", SLOW).replace("nn.Linear(8, 2)", "Slow(8, 2)")
    cut = replace(PLAIN, resume=True, train_batches=3, compute_seconds=1.6)
    record = watched(tmp_path, text + "train(4)\n", cut=cut)
    assert any("first batch and the last one" in note for note in record.notes)
    assert {one.counts["batches"] for one in record.epochs} == {2}


CONTINUES = """
import os, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
first = 0
if {condition}:
    saved = torch.load("out/last.pt")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["epoch"]
for epoch in range(first, 6):
    for x, y in DataLoader(data, batch_size=16, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    os.makedirs("out", exist_ok=True)
    state = {{"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}}
    torch.save(state, "out/last.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("needed", [False, True], ids=["may begin anew", "needs its file"])
def test_a_project_with_a_checkpoint_is_watched_as_a_new_run(needed: bool, tmp_path: Path):
    (tmp_path / "train.py").write_text(
        CONTINUES.format(condition="os.path.exists('out/last.pt')").replace("range(first, 6)", "range(first, 4)")
    )
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True)
    before = (tmp_path / "out" / "last.pt").read_bytes()
    condition = "True" if needed else "os.path.exists('out/last.pt')"
    (tmp_path / "train.py").write_text(CONTINUES.format(condition=condition))
    record = watch([sys.executable, "train.py"], folder=tmp_path, cut=PLAIN)
    assert len(record.of("save")) == (2 if needed else 6)
    note = "a file that it cannot do without" if needed else "watched as a new run, without the earlier out/last.pt"
    assert any(note in one for one in record.of("run")[0]["notes"])
    assert (tmp_path / "out" / "last.pt").read_bytes() == before
