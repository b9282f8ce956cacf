"""Source text: each rule catches its planted bug and passes the look-alikes."""

import textwrap

import pytest

from verify.report import Finding, Status
from verify.rules import source
from verify.source import Project
from verify.trace.record import NotSeenError, Record

HEAD = """\
import argparse, glob, os, random
from pathlib import Path

import cv2
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.transforms import v2
from tqdm import tqdm

"""


def findings(rule, code: str, **more: str) -> list[Finding]:
    files = {"train.py": HEAD + textwrap.dedent(code), **{f"{name}.py": text for name, text in more.items()}}
    events = [{"kind": "source", "path": path, "text": text} for path, text in files.items()]
    return list(rule(Record(events)))


# Rule, code, and what is expected: the line below HEAD of each finding.
BUGS = [
    (source.result_thrown_away, "torch.no_grad()\nfor x in data:\n    model(x)", [1]),
    (source.require_grad_typo, "for p in model.parameters():\n    p.require_grad = False", [2]),
    (source.require_grad_typo, "for p in model.parameters():\n    p.requires_grads = False", [2]),
    (source.require_grad_typo, "model = torchvision.models.resnet18()\nmodel.requires_grad = False", [2]),
    (
        source.require_grad_typo,
        "model = timm.create_model('vit')\nmodel = model.to(d)\nmodel.requires_grad = False",
        [3],
    ),
    (source.require_grad_typo, "for m in model.children():\n    m.requires_grad = False", [2]),
    (
        source.require_grad_typo,
        """\
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Linear(2, 2)
        net = Net()
        net.body.requires_grad = False
        """,
        [6],
    ),
    (source.scheduler_step_epoch, "s = CosineAnnealingLR(o, T_max=3)\nfor e in range(3):\n    s.step(e - 1)", [3]),
    (
        source.scheduler_step_epoch,
        "def fit(sched):\n    for e in range(3):\n        sched.step(epoch=e)\nfit(StepLR(o, 1))",
        [3],
    ),
    (source.stale_api, "s = StepLR(o, 1, verbose=True)", [1]),
    (source.stale_api, "from torch._six import inf", [1]),
    (source.stale_api, "def unused():\n    return torch.symeig(x)", [2]),
    (source.stale_api, "t = T.RandomRotation(10, resample=2)", [1]),
    (source.unsorted_listing, "classes = os.listdir(r)\nidx = {c: i for i, c in enumerate(classes)}", [1]),
    (source.unsorted_listing, "classes = [d.name for d in Path(r).iterdir() if d.is_dir()]\ny = classes.index(n)", [1]),
    (
        source.unsorted_listing,
        "for i, d in enumerate(os.listdir(r)):\n    for f in os.listdir(d):\n        items.append((f, i))",
        [1],
    ),
    (source.unsorted_listing, "for a, b in zip(os.listdir(x), os.listdir(y)):\n    print(a, b)", [1]),
    (source.unsorted_listing, "fs = glob.glob(r)\nn = int(0.8 * len(fs))\ntr, va = fs[:n], fs[n:]", [1]),
    (
        source.unsorted_listing,
        """\
        class D(Dataset):
            def __init__(self, a, b):
                self.images = os.listdir(a)
                self.masks = os.listdir(b)

            def __getitem__(self, i):
                return load(self.images[i]), load(self.masks[i])
        """,
        [3],
    ),
    (source.unsorted_listing, "names = list(set(p.name for p in ps))\nidx = {c: i for i, c in enumerate(names)}", [1]),
    (source.bgr_image, "class D(Dataset):\n    def __getitem__(self, i):\n        return cv2.imread(self.p[i])", [3]),
    (source.statistics_constants, "n = T.Normalize((0.229, 0.224, 0.225), (0.485, 0.456, 0.406))", [1]),
    (source.statistics_constants, "MEAN, STD = load()\nn = T.Normalize(STD, MEAN)", [2]),
    (source.statistics_constants, "t = [T.ToTensor(), T.Normalize((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))]", [1]),
    (source.softmax_without_dim, "y = F.softmax(x)\nz = nn.LogSoftmax()\nw = nn.functional.log_softmax(x)", [1, 2, 3]),
    (
        source.batch_wide_augmentation,
        """\
        aug = v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip()])
        loader = DataLoader(ds)
        for i, (x, y) in enumerate(tqdm(loader)):
            x = aug(x)
        """,
        [4],
    ),
    (
        source.batch_wide_augmentation,
        "def go(batches):\n    for x, y in batches:\n        x = T.RandomErasing()(x)\ngo(DataLoader(ds))",
        [3],
    ),
    (
        source.dropout_always_on,
        "class N(nn.Module):\n    def forward(self, x):\n        return F.dropout(x, 0.1) + nn.functional.dropout2d(x)",
        [3, 3],
    ),
    (
        source.dropout_always_on,
        "class N(nn.Module):\n    def forward(self, q):\n"
        "        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.1)",
        [3],
    ),
    (source.method_not_called, "model.eval\noptimizer.zero_grad\nloss.backward()", [1, 2]),
    (source.loss_rewrapped, "loss = torch.tensor(loss, requires_grad=True)\nloss.backward()", [1]),
    (source.loss_rewrapped, "loss = criterion(out, y)\nloss.requires_grad = True\nloss.backward()", [2]),
    (source.loss_rewrapped, "loss = criterion(out, y).detach()\nloss.requires_grad_(True)\nloss.backward()", [2]),
    (source.loss_rewrapped, "loss.data.backward()", [1]),
    (
        source.loss_rewrapped,
        """\
        def step(model, x, y):
            out = model(x)
            out = torch.tensor(out.tolist(), requires_grad=True)
            loss = criterion(out, y)
            loss.backward()
            optimizer.step()
        optimizer = optim.SGD(model.parameters())
        """,
        [3],
    ),
    (source.training_error_swallowed, "for x in l:\n    try:\n        loss.backward()\n    except:\n        pass", [4]),
    (source.text_compared_by_identity, "if name is 'sgd':\n    pass", [1]),
    (
        source.optimizer_rebuilt,
        "for epoch in range(9):\n    opt = optim.Adam(model.parameters())\n    train(opt)",
        [2],
    ),
    (source.plus_after_equals, "total =+ loss.item()", [1]),
    (source.comparison_for_assignment, "for p in ps:\n    p.requires_grad == False", [2]),
    (source.result_thrown_away, "for p in ps:\n    p.grad.clamp(-1, 1)", [2]),
    (source.result_thrown_away, "for x, y in DataLoader(ds):\n    x.to(device)", [2]),
    (source.result_thrown_away, "from dataclasses import replace\ncfg = Config()\nreplace(cfg, lr=0.1)", [3]),
    (source.result_thrown_away, "files = list(Path(r).iterdir())\nsorted(files)\nmap(load, files)", [2, 3]),
    (source.result_thrown_away, "import numpy as np\nnp.clip(x, 0, 1)\nnp.random.permutation(x)", [2, 3]),
    (source.result_thrown_away, "for name in names:\n    name.strip()\n    name.replace('module.', '')", [2, 3]),
    (
        source.result_thrown_away,
        "import pandas as pd\ndf = pd.read_csv(p)\ndf.fillna(0)\ndf.drop(columns=['a'])",
        [3, 4],
    ),
    (source.result_thrown_away, "def f(x):\n    F.normalize(x, dim=1)\n    x.reshape(-1)\n    return x", [2, 3]),
]

BUGS += [
    (
        source.batch_wide_augmentation,
        "def fit(train_loader):\n    for x, y in train_loader:\n        x = v2.RandomCrop(32)(x)",
        [3],
    ),
]

HEALTHY = [
    (source.result_thrown_away, "with torch.no_grad():\n    model(x)\ntorch.set_grad_enabled(False)"),
    (
        source.batch_wide_augmentation,
        "def load(loader_of_files):\n    for x in loader_of_files.names:\n        x = T.RandomCrop(32)(x)",
    ),
    (source.require_grad_typo, "for p in model.parameters():\n    p.requires_grad = False"),
    (source.require_grad_typo, "model.fc.weight.requires_grad = False\nx.requires_grad = True"),
    (
        source.require_grad_typo,
        "class V:\n    def __init__(self):\n        self.require_grad = 1\nprint(v.require_grad)",
    ),
    (
        source.require_grad_typo,
        "for m in model.modules():\n    for p in m.parameters():\n        p.requires_grad = False",
    ),
    (source.require_grad_typo, "model = nn.Linear(2, 2)\nmodel.weight.requires_grad = False"),
    (source.require_grad_typo, "for n, p in model.named_parameters():\n    p.requires_grad = 'fc' in n"),
    (source.scheduler_step_epoch, "s = ReduceLROnPlateau(o)\ns.step(val_loss)"),
    (source.scheduler_step_epoch, "s = CosineAnnealingWarmRestarts(o, 3)\ns.step(epoch + i / n)"),
    (source.scheduler_step_epoch, "s = StepLR(o, 1)\ns.step()"),
    (source.scheduler_step_epoch, "def f(s):\n    s.step(epoch)"),
    (source.scheduler_step_epoch, "s = StepLR(o, 1) if a else ReduceLROnPlateau(o)\ns.step(loss)"),
    (source.stale_api, "s = StepLR(o, 1)\nprint(s.get_last_lr())\nx = torch.fft.rfft(y)"),
    (source.stale_api, "try:\n    from torch._six import inf\nexcept ImportError:\n    from math import inf"),
    (source.unsorted_listing, "classes = sorted(os.listdir(r))\nidx = {c: i for i, c in enumerate(classes)}"),
    (source.unsorted_listing, "classes = os.listdir(r)\nclasses.sort()\ny = classes.index(n)"),
    (source.unsorted_listing, "print(len(os.listdir(r)))\nfor f in os.listdir(r):\n    os.remove(f)"),
    (source.unsorted_listing, "for i, f in enumerate(glob.glob(r)):\n    print(i, f)"),
    (source.unsorted_listing, "fs = glob.glob(r)\nrandom.shuffle(fs)\ntr, va = fs[:9], fs[9:]"),
    (source.unsorted_listing, "last = sorted(glob.glob(r))[-1]\nfirst = glob.glob(r)[:1]"),
    (source.unsorted_listing, "for f, c in zip(os.listdir(r), colours):\n    plot(f, c)"),
    (source.unsorted_listing, "ids = list(set(labels))\nn = len(ids)"),
    (
        source.bgr_image,
        "class D(Dataset):\n    def __getitem__(self, i):\n        return cv2.imread(self.p[i])[..., ::-1]",
    ),
    (source.bgr_image, "class D(Dataset):\n    def __getitem__(self, i):\n        return cv2.imread(self.p[i], 0)"),
    (source.bgr_image, "def show(p):\n    return cv2.imread(p)"),
    (source.statistics_constants, "n = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))"),
    (source.statistics_constants, "n = T.Normalize((0.5,), (0.5,))\nm = T.Normalize((0.1307,), (0.3081,))"),
    (source.statistics_constants, "t = [T.PILToTensor(), T.Normalize((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))]"),
    (
        source.statistics_constants,
        "t = [T.ToTensor(), T.Lambda(lambda x: x * 255), T.Normalize((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))]",
    ),
    (source.softmax_without_dim, "a = F.softmax(x, dim=1), F.softmax(x, -1), nn.Softmax(1), nn.LogSoftmax(dim=1)"),
    (source.softmax_without_dim, "a = F.softmax(x, **kw)\nb = model.softmax(x)"),
    (
        source.batch_wide_augmentation,
        "aug = v2.RandomCrop(32)\nfor x, y in DataLoader(ds):\n    x = torch.stack([aug(i) for i in x])",
    ),
    (source.batch_wide_augmentation, "mix = v2.MixUp(num_classes=3)\nfor x, y in DataLoader(ds):\n    x = mix(x)"),
    (source.batch_wide_augmentation, "aug = v2.RandomCrop(32)\nfor x, y in dataset:\n    x = aug(x)"),
    (source.batch_wide_augmentation, "n = T.Normalize(m, s)\nfor x, y in DataLoader(ds):\n    x = n(x)"),
    (
        source.dropout_always_on,
        "class N(nn.Module):\n    def forward(self, x):\n        return F.dropout(x, 0.1, self.training)",
    ),
    (
        source.dropout_always_on,
        "class N(nn.Module):\n    def forward(self, x):\n        if self.training:\n            x = F.dropout(x, 0.1)\n"
        "        p = 0.1 if self.training else 0.0\n"
        "        return F.scaled_dot_product_attention(x, x, x, dropout_p=p)",
    ),
    (
        source.dropout_always_on,
        "class N(nn.Module):\n    def forward(self, x):\n        if not self.training:\n            return x\n"
        "        return F.dropout(x, 0.1)",
    ),
    (source.dropout_always_on, "def mc(x):\n    return F.dropout(x, 0.1)"),
    (source.method_not_called, "model.eval()\nf = model.train\nuse(optimizer.step)\nmodel.layers"),
    (source.loss_rewrapped, "loss = criterion(model(x), y)\nloss.backward()\ntotal += loss.detach()"),
    (source.loss_rewrapped, "total = loss.detach()\nloss = criterion(out, y)\nloss.backward()"),
    (source.loss_rewrapped, "x = torch.tensor(x0, requires_grad=True)\nloss = f(x)\nloss.backward()\nprint(x.grad)"),
    (
        source.loss_rewrapped,
        "s = torch.tensor(0.0, requires_grad=True)\nfor o in outs:\n    s = s + o\ns.backward()",
    ),
    (
        source.loss_rewrapped,
        "def attack(model, x):\n    x.requires_grad = True\n    loss = model(x).sum()\n    loss.backward()",
    ),
    (source.training_error_swallowed, "try:\n    loss.backward()\nexcept RuntimeError:\n    pass"),
    (source.training_error_swallowed, "try:\n    import wandb\nexcept Exception:\n    pass"),
    (source.training_error_swallowed, "try:\n    loss.backward()\nexcept Exception:\n    failed += 1"),
    (source.text_compared_by_identity, "if a is None or b == 'x' or c is True:\n    pass"),
    (source.optimizer_rebuilt, "for fold in range(5):\n    model = make()\n    opt = optim.Adam(model.parameters())"),
    (
        source.optimizer_rebuilt,
        "for epoch in range(9):\n    if epoch == 3:\n        opt = optim.Adam(model.parameters())",
    ),
    (source.optimizer_rebuilt, "opt = optim.Adam(model.parameters())\nfor epoch in range(9):\n    train(opt)"),
    (source.plus_after_equals, "total += x\ny = +1\nloss =- x\nb=-x"),
    (source.comparison_for_assignment, "for p in ps:\n    p.requires_grad = p.name == 'x'\nassert a.b == c\na.b == c"),
    (source.result_thrown_away, "p.grad.clamp_(-1, 1)\nx = x.clamp(0, 1)\nmodel.to(device)\nseen.add(x)"),
    (source.result_thrown_away, "path.replace(target)\nos.replace(a, b)\nfiles.sort()\npath.rename(target)"),
    (source.result_thrown_away, "import pandas as pd\ndf.fillna(0, inplace=True)\ndf.drop('a', inplace=flag)"),
    (source.result_thrown_away, "import numpy as np\nnp.clip(x, 0, 1, out=x)\nnp.random.shuffle(x)"),
    (source.result_thrown_away, "# %%\nimport pandas as pd\ndf.sort_values('loss')"),
    (source.result_thrown_away, "try:\n    torch.cat(parts)\nexcept RuntimeError:\n    print('shapes differ')"),
    (source.result_thrown_away, "class A:\n    def strip(self): ...\na = A()\na.strip()"),
]


def ident(value):
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize(("rule", "code", "lines"), BUGS, ids=ident)
def test_bug_is_found(rule, code, lines):
    offset = HEAD.count("\n")
    found = [f for f in findings(rule, code) if f.status not in (Status.PASS, Status.NOTE)]
    assert [f.location for f in found] == [f"train.py:{line + offset}" for line in lines]
    assert all(f.message and f.hint for f in found)


@pytest.mark.parametrize(("rule", "code"), HEALTHY, ids=ident)
def test_look_alike_passes(rule, code):
    assert [f for f in findings(rule, code) if f.status not in (Status.PASS, Status.NOTE)] == []


def test_old_names_are_notes():
    found = findings(source.stale_api, "s = torch.cuda.amp.GradScaler()\nnn.init.xavier_uniform(w)")
    assert [f.status for f in found] == [Status.NOTE]
    assert "torch.amp.GradScaler" in found[0].measured


def test_constants_of_the_smaller_sibling_are_a_note():
    code = "d = torchvision.datasets.CIFAR100('x')\nn = T.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))"
    assert [f.status for f in findings(source.statistics_constants, code)] == [Status.NOTE]


def test_class_and_transform_of_another_file_are_known():
    net = "import torch.nn as nn\nclass Net(nn.Module):\n    pass\n"
    assert (
        len(findings(source.require_grad_typo, "from net import Net\nm = Net()\nm.requires_grad = False", net=net)) == 1
    )


def test_rules_ask_for_torch():
    with pytest.raises(NotSeenError):
        list(source.method_not_called(Record([{"kind": "source", "path": "a.py", "text": "model.eval"}])))
    with pytest.raises(NotSeenError):
        list(source.method_not_called(Record([])))


class TestProject:
    def test_names_are_resolved_through_imports_and_scopes(self):
        project = Project({"a.py": "import torch.nn as nn\ndef f(nn):\n    nn.Linear\nnn.Linear\n"})
        names = {node.lineno: project.qualified(node) for node in project.attributes["Linear"]}
        assert names == {3: "", 4: "torch.nn.Linear"}

    def test_imports_reach_the_projects_own_files(self):
        project = Project(
            {
                "pkg/train.py": "from .data import load\nload()\n",
                "pkg/data.py": "from .io import *\n",
                "pkg/io.py": "def load():\n    pass\n",
            }
        )
        assert [function.name for function, _ in project.callees(project.calls[0])] == ["load"]

    def test_text_that_does_not_parse_is_left_out(self):
        assert Project({"a.py": "def (", "b.py": "x = 1", "c.txt": "x"}).files[0].path == "b.py"
