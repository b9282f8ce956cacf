"""The slash commands, the settings of Claude Code, and the script that starts training outside the session.

`problems` knows what makes the client drop, abort or misread a command file; each of its rules is tried on a file that
breaks it.
"""

import contextlib
import fnmatch
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kit.paths import commands_dir

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "templates" / "pytorch_project" / "template"
COMMANDS = sorted(commands_dir().glob("*.md"))

KNOWN_KEYS = {
    "description",
    "when_to_use",
    "argument-hint",
    "arguments",
    "disable-model-invocation",
    "user-invocable",
    "allowed-tools",
    "disallowed-tools",
    "model",
    "effort",
    "context",
    "agent",
    "background",
    "hooks",
    "shell",
    "metadata",
    "license",
    "compatibility",
}
# Built-in commands and bundled skills of the client: a file of such a name is shadowed or shadows.
RESERVED = """
    agents batch claude-api clear code-review color compact config context dataviz debug deep-research doctor effort
    export fast fewer-permission-prompts focus goal init insights list-agents loop mcp model output-style plan recap
    rename review run run-skill-generator security-review simplify team-onboarding update-config usage verify
    workflow-authoring
"""
INJECTED = re.compile(r"(?:^|\s)!`([^`]+)`", re.MULTILINE)


def problems(name: str, text: str) -> Iterator[str]:
    """What the client, or its user, would stumble over in a command file."""
    if name in RESERVED.split():
        yield "reserved name"
    if text.count("\n") >= 120:
        yield "too long"
    _, head, body = text.split("---\n", 2)
    try:
        front = yaml.safe_load(head)
    except yaml.YAMLError:
        yield "broken frontmatter"
        return
    if unknown := set(front) - KNOWN_KEYS:
        yield f"unknown keys {sorted(unknown)}"
    if not 40 <= len(front.get("description", "")) <= 1536:
        yield "description too short or too long"
    if "argument-hint" in front and not re.search(r'^argument-hint: ".*"$', head, re.MULTILINE):
        yield "argument-hint not quoted"
    if re.search(r"(?<!\\)\$\d", body):
        yield "positional argument: counts from 0"
    if "argument-hint" in front and "$ARGUMENTS" not in body:
        yield "arguments never used"
    allowed = front.get("allowed-tools", [])
    if body.count("!`") != len(INJECTED.findall(body)):
        yield "an exclamation mark before a backtick that is no injection"
    for line in INJECTED.findall(body):
        if not line.endswith("|| true"):
            yield f"would abort the command: {line}"
        yield from (f"no rule allows: {part}" for part in parts(line) if not is_allowed(part, allowed))
    for line in re.findall(r"^ {4,}((?:python|kit) .*)$", body, re.MULTILINE):
        if not is_allowed(line, allowed):
            yield f"no rule allows: {line}"


def parts(line: str) -> list[str]:
    """The commands of a shell line; the client wants a rule for each."""
    return [part.strip() for part in re.split(r"\|\||&&|[|;]", line) if part.strip() != "true"]


def is_allowed(command: str, rules: list[str]) -> bool:
    """Whether a `Bash(...)` rule covers a command. `ls *` also covers the bare `ls`."""
    patterns = [rule[len("Bash(") : -1] for rule in rules if rule.startswith("Bash(")]
    return any(fnmatch.fnmatchcase(command, p) or command == p.removesuffix(" *") for p in patterns)


GOOD = """---
description: Trains the model and reports what the run proves. Use to train.
argument-hint: "[--fresh]"
allowed-tools:
  - Bash(ls *)
  - Bash(python train.py *)
---
Options: `$ARGUMENTS`. Runs: !`ls -1t runs || true`

    python train.py OPTIONS
"""


class TestCommands:
    @pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
    def test_has_no_problems(self, path: Path) -> None:
        assert list(problems(path.stem, path.read_text())) == []

    def test_train_and_evaluate_are_there(self) -> None:
        assert {"train", "evaluate"} <= {path.stem for path in COMMANDS}

    @pytest.mark.parametrize(
        ("old", "new", "problem"),
        [
            ('"[--fresh]"', "[--config FILE] [--fresh]", "broken frontmatter"),
            ('"[--fresh]"', "[--fresh]", "argument-hint not quoted"),
            ("allowed-tools:", "personas: [engineer]\nallowed-tools:", "unknown keys ['personas']"),
            (
                "description: Trains the model and reports what the run proves. Use to train.",
                "description: Trains.",
                "desc",
            ),
            ("`$ARGUMENTS`", "`$ARGUMENTS`, seed $1", "positional argument"),
            ("`$ARGUMENTS`", "none", "arguments never used"),
            (" || true", "", "would abort the command: ls -1t runs"),
            ("  - Bash(ls *)\n", "", "no rule allows: ls -1t runs"),
            ("ls -1t runs ||", "ls -1t runs | head -n 1 ||", "no rule allows: head -n 1"),
            ("  - Bash(python train.py *)\n", "", "no rule allows: python train.py OPTIONS"),
            ("Options:", "Wow!`x` Options:", "an exclamation mark before a backtick"),
            ("Options:", "\n" * 120 + "Options:", "too long"),
        ],
    )
    def test_each_problem_is_found(self, old: str, new: str, problem: str) -> None:
        assert list(problems("train", GOOD)) == []
        assert old in GOOD
        found = list(problems("train", GOOD.replace(old, new)))
        assert any(text.startswith(problem) for text in found), found

    def test_reserved_name_is_found(self) -> None:
        assert list(problems("review", GOOD)) == ["reserved name"]

    @pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
    def test_claims_verified_only_after_exit_0(self, path: Path) -> None:
        text = path.read_text()
        assert '| "verified" | `kit verify` exited 0' in text
        assert "not verified: kit is not installed" in text

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("script", "options"), [("train.py", "--config --set --fresh"), ("evaluate.py", "--checkpoint --split")]
    )
    def test_scripts_take_the_options_that_the_command_names(self, script: str, options: str) -> None:
        command = (PROJECT / ".claude" / "commands" / script).with_suffix(".md").read_text()
        usage = subprocess.run([sys.executable, script, "--help"], cwd=PROJECT, capture_output=True, text=True)
        assert usage.returncode == 0
        for option in options.split():
            assert option in command
            assert option in usage.stdout


def denials(ignore: list[str]) -> list[str]:
    """What `.clauderc` means by `ignore`, as the client understands it: anchored at the project, not at the shell."""
    return [f"Read(/{pattern})" for pattern in ignore]


class TestSettings:
    @pytest.fixture(params=[ROOT, PROJECT], ids=["kit", "project"])
    def home(self, request: pytest.FixtureRequest) -> Path:
        return request.param

    def test_deny_what_clauderc_ignores(self, home: Path) -> None:
        rc = json.loads((home / ".clauderc").read_text())
        settings = json.loads((home / ".claude" / "settings.json").read_text())
        assert settings["permissions"]["deny"] == denials(rc["ignore"])
        assert len(rc["ignore"]) > 3

    def test_claude_md_imports_what_clauderc_always_includes(self, home: Path) -> None:
        rc = json.loads((home / ".clauderc").read_text())
        imports = re.findall(r"^@(\S+)$", (home / "CLAUDE.md").read_text(), re.MULTILINE)
        assert imports == rc["context"]["always_include"]
        for name in imports:
            assert (home / name).exists() or (home / f"{name}.jinja").exists()

    @pytest.mark.parametrize("visible", ["data/dataloader.py", "checkpoints", "checkpoints/config.yaml", "runs"])
    def test_code_and_results_stay_visible(self, visible: str) -> None:
        # A denied `checkpoints/**` makes the client refuse `ls -l checkpoints`, and with it the whole of /train.
        ignore = json.loads((PROJECT / ".clauderc").read_text())["ignore"]
        for pattern in ignore:
            assert not fnmatch.fnmatchcase(visible, pattern)
            assert visible != pattern.removesuffix("/**")

    def test_data_and_weights_are_hidden(self) -> None:
        ignore = json.loads((PROJECT / ".clauderc").read_text())["ignore"]
        for hidden in ("data/raw/cifar-10-batches-py/test_batch", "checkpoints/last.pt", "models/a.pth"):
            assert any(fnmatch.fnmatchcase(hidden, pattern) for pattern in ignore)

    def test_commands_run_without_asking(self) -> None:
        allow = json.loads((PROJECT / ".claude" / "settings.json").read_text())["permissions"]["allow"]
        for path in (PROJECT / ".claude" / "commands").glob("*.md"):
            rules = yaml.safe_load(path.read_text().split("---\n")[1])["allowed-tools"]
            assert {rule for rule in rules if rule.startswith("Bash(")} <= set(allow)


FAKE_TRAIN = """
import json, os, sys, time
from pathlib import Path
if "bad" in sys.argv:
    print("error: --set bad: write it as key=value", file=sys.stderr)
    sys.exit(2)
run = Path("runs/fake-1")
run.mkdir(parents=True, exist_ok=True)
status = {"state": "running", "pid": os.getpid(), "arguments": sys.argv[1:]}
(run / "status.json").write_text(json.dumps(status))
time.sleep(40)
"""


class TestStartTraining:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Iterator[Path]:
        (tmp_path / ".claude").mkdir()
        script = (PROJECT / ".claude" / "start_training.py").read_text()
        (tmp_path / ".claude" / "start_training.py").write_text(script)
        (tmp_path / "train.py").write_text(FAKE_TRAIN)
        yield tmp_path
        status = tmp_path / "runs" / "fake-1" / "status.json"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(json.loads(status.read_text())["pid"], signal.SIGKILL)

    def start(self, project: Path, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(project / ".claude" / "start_training.py"), *options]
        return subprocess.run(command, cwd=cwd or project, capture_output=True, text=True, timeout=30)

    def test_returns_while_training_goes_on_in_its_own_session(self, project: Path, tmp_path_factory) -> None:
        before = time.monotonic()
        result = self.start(project, "--set", "a=b c", "--fresh", cwd=tmp_path_factory.mktemp("elsewhere"))
        assert time.monotonic() - before < 20
        assert result.returncode == 0
        status = json.loads((project / "runs" / "fake-1" / "status.json").read_text())
        assert status["arguments"] == ["--set", "a=b c", "--fresh"]
        assert f"running: pid {status['pid']}, state in runs/fake-1/status.json" in result.stdout
        assert os.getsid(status["pid"]) == status["pid"] != os.getsid(0)

    def test_starts_no_second_run(self, project: Path) -> None:
        assert self.start(project).returncode == 0
        second = self.start(project)
        assert second.returncode == 2
        assert "not started: runs/fake-1 is running already" in second.stdout

    @pytest.mark.parametrize("status", ['{"state": "running", "pid": 99999999}', '{"state": "done", "pid": 1}', ""])
    def test_a_run_that_ended_is_no_obstacle(self, status: str, project: Path) -> None:
        (project / "runs" / "old").mkdir(parents=True)
        (project / "runs" / "old" / "status.json").write_text(status)
        assert self.start(project).returncode == 0

    def test_wrong_use_keeps_exit_code_and_sentence(self, project: Path) -> None:
        result = self.start(project, "bad")
        assert result.returncode == 2
        assert result.stdout == "train.py ended with exit code 2: error: --set bad: write it as key=value\n"
        assert result.stderr == ""
