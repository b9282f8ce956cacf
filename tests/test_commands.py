"""The slash commands, the settings of Claude Code, and the script that starts training outside the session."""

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

from kit.claude.clauderc import read_clauderc
from kit.claude.doctor import command_problems
from kit.claude.hooks import entries
from kit.paths import commands_dir

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "templates" / "pytorch_project" / "template"
COMMANDS = sorted(commands_dir().glob("*.md"))

CHECKS = {
    "Bash(kit facts *)",
    "Bash(kit verify *)",
    "Bash(kit watch *)",
    "Bash(kit explain *)",
    "Bash(python -m pytest *)",
}


def problems(name: str, text: str) -> Iterator[str]:
    """What the client, or its user, would stumble over in a command of ours."""
    if text.count("\n") >= 120:
        yield "too long"
    yield from command_problems(name, text)


def missing(text: str) -> Iterator[str]:
    """What a command needs so that it ends in evidence, and this one does not have."""
    lines = re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)
    if not any(line.startswith(("kit verify", "kit watch")) for line in lines) and "`kit verify`" not in text:
        yield "no check"
    yield from (
        f"exit code {n} is not spoken of"
        for n in (0, 1, 2)
        if not re.search(rf"([Ee]xit|code)\w* {n}|^ *{n}: ", text, re.M)
    )
    _, _, report = text.partition("## Report")
    if not report:
        yield "no report"
    yield from (
        f"the report has no {label}" for label in ("Result:", "Open:", "Next:") if report and label not in report
    )


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
GOOD_STEP = """
    kit verify

Exit 0: it holds. Exit 1: mend it. Exit 2: say why.

## Report

    Result: done
    Open: nothing
    Next: /train
"""
PROMPTS = yaml.safe_load((ROOT / "tests" / "claude" / "prompts.yaml").read_text())
PROMPTS = [prompt for document in PROMPTS.values() for prompt in document]


class TestCommands:
    @pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
    def test_has_no_problems(self, path: Path) -> None:
        assert list(problems(path.stem, path.read_text())) == []

    def test_all_are_linked(self) -> None:
        files = {path.stem for path in (PROJECT / ".claude" / "commands").glob("*.md")}
        assert files == {path.stem for path in COMMANDS}

    @pytest.mark.parametrize(
        ("old", "new", "problem"),
        [
            ('"[--fresh]"', "[--config FILE] [--fresh]", "broken frontmatter"),
            ('"[--fresh]"', "[--fresh]", "argument-hint not quoted"),
            ("allowed-tools:", "personas: [engineer]\nallowed-tools:", "unknown keys ['personas']"),
            (
                "description: Trains the model and reports what the run proves. Use to train.",
                "description: Trains.",
                "its description has 7 characters",
            ),
            ("`$ARGUMENTS`", "`$ARGUMENTS`, seed $1", "positional argument"),
            ("`$ARGUMENTS`", "none", "arguments never used"),
            (" || true", "", "would abort the command when it fails: ls -1t runs"),
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
        assert list(problems("review", GOOD)) == [
            "/review is a command of the client's own: give the file another name"
        ]

    @pytest.mark.parametrize("name", ["train", "evaluate"])
    def test_claims_verified_only_after_exit_0(self, name: str) -> None:
        text = (PROJECT / ".claude" / "commands" / f"{name}.md").read_text()
        assert '| "verified" | `kit verify` exited 0' in text
        assert "not verified: kit is not installed" in text

    @pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
    def test_names_a_check_its_exit_codes_and_a_report(self, path: Path) -> None:
        assert list(missing(path.read_text())) == []

    @pytest.mark.parametrize(
        ("old", "new", "problem"),
        [
            ("    kit verify\n", "", "no check"),
            ("Exit 2", "Otherwise", "exit code 2 is not spoken of"),
            ("## Report", "## Finally", "no report"),
            ("Next:", "Then:", "the report has no Next:"),
        ],
    )
    def test_what_is_missing_is_found(self, old: str, new: str, problem: str) -> None:
        assert list(missing(GOOD_STEP)) == []
        assert problem in list(missing(GOOD_STEP.replace(old, new)))

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


class TestPrompts:
    """Every prompt of the documents that the kit grew from has a command that asks for all of it, and a check."""

    def test_all_are_there(self) -> None:
        assert len(PROMPTS) == 54
        assert len({prompt["where"] for prompt in PROMPTS}) == 54

    @pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt["where"])
    def test_command_has_the_facts_of_the_prompt(self, prompt: dict) -> None:
        text = " ".join((PROJECT / ".claude" / "commands" / f"{prompt['command']}.md").read_text().split())
        assert [fact for fact in prompt["facts"] if fact not in text] == []

    def test_table_in_the_docs_has_every_prompt_and_every_command(self) -> None:
        table = (ROOT / "docs" / "commands.md").read_text()
        rows = re.findall(r"^\| (.+?) \| `/(\S+)` \| (.+) \|$", table, re.MULTILINE)
        assert {(prompt["where"], prompt["command"]) for prompt in PROMPTS} <= {row[:2] for row in rows}
        assert {command for _, command, _ in rows} == {path.stem for path in COMMANDS}
        assert all(check.strip(" -") for _, _, check in rows)

    def test_page_is_what_the_commands_say(self) -> None:
        script = ROOT / "docs" / "make_commands.py"
        assert subprocess.run([sys.executable, str(script), "--check"]).returncode == 0, "run `make docs`"


class TestSettings:
    @pytest.fixture(params=[ROOT, PROJECT], ids=["kit", "project"])
    def home(self, request: pytest.FixtureRequest) -> Path:
        return request.param

    def test_deny_what_clauderc_ignores(self, home: Path) -> None:
        rc = json.loads((home / ".clauderc").read_text())
        settings = json.loads((home / ".claude" / "settings.json").read_text())
        assert settings["permissions"]["deny"] == read_clauderc(home / ".clauderc").denials()
        assert len(rc["ignore"]) > 3

    def test_hooks_are_those_of_kit_init(self) -> None:
        settings = json.loads((PROJECT / ".claude" / "settings.json").read_text())
        assert settings["hooks"] == entries()

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
            named = {rule for rule in rules if rule.startswith("Bash(")}
            assert (named if path.stem in ("train", "evaluate") else named & CHECKS) <= set(allow)


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
