"""The commands in the real client, offline: registered, expanded, and carried out by a scripted agent."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kit import __version__
from kit.claude.hooks import entries
from kit.claude.init import plan_init
from tests.claude.client import TIMEOUT, VERSION, Client
from tests.claude.conftest import COMMANDS, ROOT
from tests.claude.stub import Call, Stub, bash

PLUGIN = COMMANDS.parent
NAMES = sorted(path.stem for path in COMMANDS.glob("*.md"))
MARK = "facts of the project"
ARGUMENTS = ("", "first", "first 2nd", '$HOME "two words" é 10% (a|b)')
CHUNK = 60  # prompts of a session


def parts_of(name: str, folder: Path = COMMANDS) -> tuple[dict, str]:
    """Frontmatter and body of a command."""
    _, front, body = (folder / f"{name}.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def expanded(name: str, arguments: str, injected: Callable[[str], str]) -> str:
    """What the body of a command becomes, by the client's documentation."""
    front, body = parts_of(name)
    body = re.sub(r"!`([^`]+)`", lambda found: injected(found[1]), body)
    given = shlex.split(arguments)
    values = dict(zip(front.get("arguments", []), given, strict=False))
    for argument in front.get("arguments", []):
        body = body.replace(f"${argument}", values.get(argument, ""))
    return body.replace("$ARGUMENTS", arguments)


def squeezed(text: str) -> str:
    """The text with every run of blanks as one."""
    return " ".join(text.split())


def prompts_of(client: Client, project: Path, prompts: list[str]) -> dict[str, str]:
    """What the agent reads for each prompt, in sessions of some."""
    found: dict[str, str] = {}
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        with Stub() as stub:
            outcome = client.converse(chunk, project, stub)
        assert outcome.code == 0, outcome.stderr
        assert stub.unexpected == []
        assert len(stub.conversations) == len(chunk), outcome.events
        for prompt, request in zip(chunk, stub.conversations, strict=True):
            last = next(message for message in reversed(request["messages"]) if message["role"] == "user")
            content = last["content"]
            texts = [content] if isinstance(content, str) else [block.get("text", "") for block in content]
            found[prompt] = "\n".join(texts)
    return found


class TestRegistration:
    def test_version_is_the_pinned_one(self, binary: Path) -> None:
        shown = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=TIMEOUT).stdout
        assert shown.split()[0] == VERSION

    def test_every_command_with_its_description_and_hint(self, client: Client, project: Path) -> None:
        listed = {command["name"]: command for command in client.commands(project)}
        for name in NAMES:
            front, _ = parts_of(name)
            assert name in listed
            assert front["description"] in listed[name]["description"]
            assert listed[name]["argumentHint"] == front.get("argument-hint", "")

    def test_skill_and_agents_are_there(self, client: Client, tmp_path: Path) -> None:
        plan_init(tmp_path).carry_out()
        with Stub() as stub:
            outcome = client.ask("hello", tmp_path, stub)
        assert "kit-evidence" in outcome.init["skills"]
        agents = {path.stem for path in (PLUGIN / "agents").glob("*.md")}
        assert len(agents) == 4
        assert agents <= set(outcome.init["agents"])
        assert "verify before you train" in json.dumps(stub.conversations[0])

    def test_a_broken_head_is_noticed(self, client: Client, project: Path) -> None:
        path = project / ".claude" / "commands" / "resnet-3-model.md"
        path.write_text(path.read_text().replace('description: "', 'description: "Step" "'))
        listed = {command["name"]: command for command in client.commands(project)}
        front, _ = parts_of("resnet-3-model")
        assert front["description"] not in listed["resnet-3-model"]["description"]
        assert listed["resnet-3-model"]["argumentHint"] == ""

    def test_listing_stays_small(self, client: Client, project: Path) -> None:
        """The model reads name and description of every command in each session: a token is four characters."""
        with Stub() as stub:
            client.ask("hello", project, stub)
        request = json.dumps(stub.conversations[0])
        described = [parts_of(name)[0]["description"] for name in NAMES if f"- {name}: " in request]
        assert len(described) >= len(NAMES) - 3  # all but those that the user alone may start
        heads = [parts_of(path.stem, path.parent)[0] for path in PLUGIN.glob("agents/*.md")]
        heads += [parts_of("SKILL", path.parent)[0] for path in PLUGIN.glob("skills/*/SKILL.md")]
        listing = "".join(f"- {name}: {parts_of(name)[0]['description']}\n" for name in NAMES)
        listing += "".join(f"- {head['name']}: {head['description']}\n" for head in heads)
        assert len(listing) / 4 < 4000


class TestPlugin:
    def test_is_valid_strictly(self, client: Client) -> None:
        for folder in (ROOT, PLUGIN):
            result = client.run("plugin", "validate", str(folder), "--strict")
            assert result.returncode == 0, result.stdout
        assert "pytorch-kit:vit-5-model" in result.stdout

    def test_a_broken_manifest_is_noticed(self, client: Client, tmp_path: Path) -> None:
        shutil.copytree(PLUGIN, tmp_path / "plugin")
        manifest = tmp_path / "plugin" / ".claude-plugin" / "plugin.json"
        manifest.write_text(manifest.read_text().replace('"PreToolUse": [', '"BeforeTool": ['))
        assert client.run("plugin", "validate", str(tmp_path / "plugin"), "--strict").returncode == 1

    def test_says_what_the_kit_says(self) -> None:
        manifest = json.loads((PLUGIN / ".claude-plugin" / "plugin.json").read_text())
        market = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text())
        assert manifest["version"] == __version__
        assert manifest["hooks"] == entries()
        assert [(ROOT / plugin["source"]).resolve() for plugin in market["plugins"]] == [PLUGIN]
        assert market["plugins"][0]["description"] == manifest["description"]

    def test_installs_from_a_checkout_and_works(self, client: Client, tmp_path: Path) -> None:
        assert client.run("plugin", "marketplace", "add", str(ROOT)).returncode == 0
        assert client.run("plugin", "install", "pytorch-kit@claude-pytorch-kit").returncode == 0
        with Stub() as stub:
            outcome = client.ask(
                "/pytorch-kit:quick-debug it fails", tmp_path, stub, "--setting-sources", "user,project"
            )
        assert "pytorch-kit:train" in outcome.init["slash_commands"]
        assert "Debug. Message, code, expected behaviour: `it fails`" in stub.prompt


class TestExpansion:
    @pytest.mark.parametrize("arguments", ARGUMENTS, ids=["none", "one", "two", "odd"])
    def test_every_command_becomes_what_it_should(
        self, arguments: str, client: Client, project: Path, fake_kit: Callable[[str], None]
    ) -> None:
        fake_kit(f"echo {MARK}")
        names = [name for name in NAMES if name not in ("train", "evaluate")]
        texts = prompts_of(client, project, [f"/{name} {arguments}".strip() for name in names])
        for name, text in zip(names, texts.values(), strict=True):
            assert squeezed(expanded(name, arguments, lambda _: MARK)) in squeezed(text), name

    def test_facts_that_fail_stop_no_command(
        self, client: Client, project: Path, fake_kit: Callable[[str], None]
    ) -> None:
        fake_kit("echo kit is broken >&2; exit 3")
        texts = prompts_of(client, project, [f"/{name}" for name in NAMES])
        for prompt, text in texts.items():
            assert "## Report" in text, prompt
            if prompt not in ("/train", "/evaluate"):
                assert "kit is broken" in text

    def test_a_command_makes_sense_without_execution(self, client: Client, project: Path) -> None:
        (project / ".claude" / "settings.json").write_text('{"disableSkillShellExecution": true}')
        with Stub() as stub:
            client.ask("/resnet-1-block", project, stub)
        assert "## Prove" in stub.prompt
        assert "disabled" in stub.prompt.split("look for yourself.")[1].split("## Build")[0]

    @pytest.mark.parametrize(
        ("old", "new", "sign"),
        [
            (" || true", "", "Shell command failed"),
            ("  - Bash(kit facts *)\n", "", "permission check failed"),
        ],
        ids=["no || true", "no rule"],
    )
    def test_what_would_abort_a_command_is_noticed(
        self, old: str, new: str, sign: str, client: Client, project: Path, fake_kit: Callable[[str], None]
    ) -> None:
        fake_kit("exit 3")
        path = project / ".claude" / "commands" / "resnet-1-block.md"
        path.write_text(path.read_text().replace(old, new))
        with Stub() as stub:
            outcome = client.ask("/resnet-1-block", project, stub)
        assert stub.conversations == []
        assert sign in json.dumps(outcome.events)


THEIR_SCRIPT = """
import torch
from sklearn.datasets import load_digits
from torch import nn

digits = load_digits()
data = torch.utils.data.TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), nn.Softmax(dim=1))
optimizer = torch.optim.Adam(model.parameters())
if __name__ == "__main__":
    for _ in range(3):
        for x, y in torch.utils.data.DataLoader(data, batch_size=64, shuffle=True):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
"""


def leak_in(model: Path) -> dict[str, str]:
    """The edit that makes the samples of a batch depend on each other."""
    head = "return self.classifier("
    return {"file_path": str(model), "old_string": head, "new_string": f"x = x - x.mean(0)\n        {head}"}


class TestEffects:
    """A scripted agent at work: what the client lets it do."""

    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        folder = tmp_path / "classifier"
        subprocess.run(["kit", "new", str(folder), "--dataset", "digits"], check=True, capture_output=True)
        return folder

    @pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "untrusted"])
    def test_train_with_its_facts_and_a_check(self, trusted: bool, client: Client, project: Path) -> None:
        (project / "runs" / "cnn-1").mkdir(parents=True)
        status = {"state": "stopped_early", "epoch": 7, "epochs": 50, "metrics": {"val_accuracy": 0.97531}}
        (project / "runs" / "cnn-1" / "status.json").write_text(json.dumps(status))
        config = project / "config.yaml"
        config.write_text(config.read_text().replace("learning_rate: 0.001", "learning_rate: 0.00321"))
        steps = [bash("kit verify --quick --select MOD101,MOD102,MOD103"), bash("rm -rf models"), "not trained"]
        with Stub(steps) as stub:
            outcome = client.ask("/train --set epochs=2", project, stub, trusted=trusted)
        assert "Options: `--set epochs=2`" in stub.prompt
        assert "learning_rate=0.00321" in stub.prompt
        assert "runs/cnn-1: stopped_early; epoch 7 of 50; val_accuracy 0.9753" in stub.prompt
        assert "Python 3." in stub.prompt
        checked, removed = stub.results
        assert "parameter-count: 1,147,914" in checked
        assert stub.failed == [False, True]
        assert (project / "models").is_dir(), removed
        assert outcome.result["result"] == "not trained"

    def test_protected_files_are_refused_and_the_reason_comes_back(self, client: Client, project: Path) -> None:
        before = (project / "evaluate.py").read_text()
        steps = [
            Call("Read", {"file_path": str(project / "evaluate.py")}),
            bash("sed -i s/test/train/ evaluate.py"),
            Call("Edit", {"file_path": str(project / "evaluate.py"), "old_string": "test", "new_string": "train"}),
            "done",
        ]
        with Stub(steps) as stub:
            client.ask("/quick-debug x", project, stub, "--allowedTools", "Edit,Bash(sed *)")
        assert stub.failed == [False, True, True]
        assert ".clauderc lists evaluate.py under `protect`" in stub.results[1]
        assert (project / "evaluate.py").read_text() == before

    def test_a_planted_bug_is_reported_after_the_edit_and_before_the_stop(self, client: Client, project: Path) -> None:
        model = project / "models" / "cnn.py"
        leak = leak_in(model)
        back = leak | {"old_string": leak["new_string"], "new_string": leak["old_string"]}
        steps = [
            Call("Read", {"file_path": str(model)}),
            Call("Edit", leak),
            "done, it works",  # the hook refuses
            Call("Edit", back),
            bash("kit verify"),
            "done, mended",
        ]
        with Stub(steps) as stub:
            outcome = client.ask("/train --set epochs=2", project, stub, "--allowedTools", "Edit")
        requests = [json.dumps(request["messages"][-1]) for request in stub.conversations]
        assert "MOD104 sample-leak" in requests[2]  # beside the result of the edit
        assert "kit verify` exits with 1 on the code as this session leaves it" in requests[3]
        assert "passed" in stub.results[-1]
        assert len(requests) == 6
        assert outcome.result["result"] == "done, mended"

    @pytest.mark.slow
    def test_the_stop_is_refused_once_for_a_reason(self, client: Client, project: Path) -> None:
        model = project / "models" / "cnn.py"
        steps = [
            Call("Read", {"file_path": str(model)}),
            Call("Edit", leak_in(model)),
            "done",
            "it does not hold: MOD104",
            "never",
        ]
        with Stub(steps) as stub:
            outcome = client.ask("/quick-feature x", project, stub, "--allowedTools", "Edit")
        assert outcome.result["result"] == "it does not hold: MOD104"

    def test_hooks_are_switched_off_by_one_setting(self, client: Client, project: Path) -> None:
        (project / ".claude" / "settings.local.json").write_text('{"env": {"KIT_HOOKS": "off"}}')
        model = project / "models" / "cnn.py"
        with Stub([Call("Read", {"file_path": str(model)}), Call("Edit", leak_in(model)), "done"]) as stub:
            outcome = client.ask(
                "/quick-feature x", project, stub, "--allowedTools", "Edit", "--setting-sources", "project,local"
            )
        assert outcome.result["result"] == "done"
        assert "MOD104" not in json.dumps(stub.requests[-1]["messages"][1:])

    def test_settings_of_a_project_hide_data_and_weights(self, client: Client, project: Path) -> None:
        (project / "data" / "raw").mkdir()
        (project / "data" / "raw" / "labels.txt").write_text("label-4711")
        steps = [
            Call("Read", {"file_path": str(project / "data" / "raw" / "labels.txt")}),
            Call("Read", {"file_path": str(project / "data" / "dataloader.py")}),
            "done",
        ]
        with Stub(steps) as stub:
            client.ask("/acceptance", project, stub)
        assert stub.failed == [True, False]
        assert "label-4711" not in json.dumps(stub.requests)

    def test_init_makes_a_clauderc_hold_in_a_project_of_others(self, client: Client, tmp_path: Path) -> None:
        folder = tmp_path / "theirs"
        for name in ("private/sub", "weights", "docs"):
            (folder / name).mkdir(parents=True)
        for name in ("private/sub/a.txt", "weights/b.pt", "docs/c.txt", "measure.py"):
            (folder / name).write_text(f"text-of {name}\n")
        rc = {
            "ignore": ["**/private", "**/*.pt"],
            "context": {"always_include": ["docs/c.txt"]},
            "protect": ["measure.py"],
        }
        (folder / ".clauderc").write_text(json.dumps(rc))
        plan_init(folder).carry_out()
        steps = [
            Call("Read", {"file_path": str(folder / name)})
            for name in ("private/sub/a.txt", "weights/b.pt", "measure.py")
        ]
        edit = {"file_path": str(folder / "measure.py"), "old_string": "text-of", "new_string": "cheat"}
        with Stub([*steps, Call("Edit", edit), "done"]) as stub:
            client.ask("/quick-debug it fails", folder, stub, "--allowedTools", "Edit")
        assert stub.failed == [True, True, False, True]
        assert (folder / "measure.py").read_text() == "text-of measure.py\n"
        requests = json.dumps(stub.requests)
        assert "text-of docs/c.txt" in requests
        assert "text-of private" not in requests
        assert "text-of weights" not in requests

    @pytest.mark.slow
    def test_a_new_user_in_a_project_of_their_own(self, client: Client, tmp_path: Path) -> None:
        folder = tmp_path / "theirs"
        folder.mkdir()
        (folder / "digits.py").write_text(THEIR_SCRIPT)
        (folder / "README.md").write_text("# Digits\n")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        kit = [sys.executable, "-m", "kit", "init", str(folder)]
        subprocess.run(kit, check=True, capture_output=True)
        steps = [
            bash("kit watch --quick -- python digits.py"),
            bash("kit explain LOS901"),
            "the loss gets probabilities",
        ]
        with Stub(steps) as stub:
            outcome = client.ask("/debug-not-learning digits.py stuck at 1.5", folder, stub)
        assert "training     digits.py" in stub.prompt
        assert "What the user said: `digits.py stuck at 1.5`" in stub.prompt
        assert "LOS901 softmax-before-cross-entropy  digits.py:13" in stub.results[0]
        assert "applies a softmax itself" in stub.results[1]
        assert outcome.result["result"] == "the loss gets probabilities"
        subprocess.run([*kit, "--remove"], check=True, capture_output=True)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_a_judging_command_cannot_edit(self, client: Client, project: Path) -> None:
        before = (project / "verify.yaml").read_text()
        steps = [Call("Write", {"file_path": str(project / "verify.yaml"), "content": "model: x"}), "done"]
        with Stub(steps) as stub:
            client.ask("/acceptance", project, stub)
        assert (project / "verify.yaml").read_text() == before
        assert stub.failed == [True]

    def test_claude_md_brings_the_files_that_are_always_included(self, client: Client, project: Path) -> None:
        with Stub() as stub:
            client.ask("hello", project, stub)
        request = json.dumps(stub.conversations[0])
        assert "patience: 10" in request  # of config.yaml
        assert "scikit-learn>=1.5" in request  # of requirements.txt
