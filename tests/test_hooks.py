"""The hooks of Claude Code, without the client: events in, answers out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.claude import hooks
from kit.claude.hooks import edit, entries, guard, start, stop, written_by
from kit.claude.state import accept, fingerprint, is_accepted

SESSION = {"session_id": "abc-1"}
FAILED = (1, ["MOD104 sample-leak: net.py:3, samples mix"])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "project"
    (folder / "data" / "test").mkdir(parents=True)
    (folder / ".clauderc").write_text('{"protect": ["evaluate.py", "data/test/**"]}')
    (folder / "evaluate.py").write_text("measure()\n")
    (folder / "net.py").write_text("class Net(nn.Module): pass\n")
    (folder / "verify.yaml").write_text("model: net.py:Net\n")
    return folder


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """What `kit verify` says, one answer a call; the last one stays."""
    answers: list[tuple[int, list[str]]] = [(0, [])]
    calls: list[tuple[int, list[str]]] = []

    def verify(*_: Any) -> tuple[int, list[str]]:
        calls.append(answers[min(len(calls), len(answers) - 1)])
        return calls[-1]

    monkeypatch.setattr(hooks, "verify", verify)
    return answers


class TestGuard:
    @pytest.mark.parametrize(
        ("command", "paths"),
        [
            ("rm -rf data/test", ["data/test"]),
            ("cd x && rm a; mv b c", ["a", "b", "c"]),
            ("echo 1 > evaluate.py", ["evaluate.py"]),
            ("echo 1 >> 'my file.py' && ls", ["my file.py"]),
            ("python train.py 2>&1 | tee log.txt", ["log.txt"]),
            ("sed -i s/a/b/ evaluate.py", ["s/a/b/", "evaluate.py"]),
            ("sed -n 1,5p evaluate.py", []),
            ("perl -pi -e s/a/b/ x.py", ["s/a/b/", "x.py"]),
            ("cp evaluate.py copy.py", ["copy.py"]),
            ("sudo env A=1 /bin/rm x", ["x"]),
            ("git checkout -- evaluate.py", ["evaluate.py"]),
            ("git status evaluate.py", []),
            ("cat evaluate.py | grep rm", []),
            ("python evaluate.py --split val", []),
            ("echo 'open quote", []),
            ("", []),
        ],
    )
    def test_what_a_shell_line_changes(self, command: str, paths: list[str]) -> None:
        assert list(written_by(command)) == paths

    @pytest.mark.parametrize(
        ("tool", "arguments", "refused"),
        [
            ("Edit", {"file_path": "evaluate.py"}, True),
            ("Edit", {"file_path": "{project}/evaluate.py"}, True),
            ("Write", {"file_path": "data/test/labels.csv"}, True),
            ("Write", {"file_path": "data/train/labels.csv"}, False),
            ("Edit", {"file_path": "sub/../evaluate.py"}, True),
            ("Edit", {"file_path": "sub/evaluate.py"}, False),
            ("NotebookEdit", {"notebook_path": "data/test/a.ipynb"}, True),
            ("Bash", {"command": "rm -r data"}, True),
            ("Bash", {"command": "rm -rf ."}, True),
            ("Bash", {"command": "echo x > data/test/y"}, True),
            ("Bash", {"command": "python evaluate.py && cat data/test/y"}, False),
            ("Bash", {"command": "rm -r datasets"}, False),
            ("Write", {"file_path": "/elsewhere/evaluate.py"}, False),
        ],
    )
    def test_protected_files_are_not_changed(
        self, tool: str, arguments: dict[str, str], refused: bool, project: Path
    ) -> None:
        arguments = {key: value.format(project=project) for key, value in arguments.items()}
        answer = guard({"tool_name": tool, "tool_input": arguments, "cwd": str(project)}, project)
        assert bool(answer) == refused
        if answer:
            assert answer["hookSpecificOutput"]["permissionDecision"] == "deny"
            assert "is protected: .clauderc lists" in answer["hookSpecificOutput"]["permissionDecisionReason"]

    def test_without_protection_everything_goes(self, project: Path) -> None:
        (project / ".clauderc").unlink()
        assert guard({"tool_name": "Edit", "tool_input": {"file_path": "evaluate.py"}}, project) is None


class TestEdit:
    def event(self, project: Path, name: str = "net.py") -> dict[str, Any]:
        return SESSION | {"tool_name": "Edit", "tool_input": {"file_path": str(project / name)}}

    def test_reports_what_the_check_found_once(self, project: Path, verdicts: list) -> None:
        verdicts[:] = [FAILED]
        answer = edit(self.event(project), project)
        assert answer
        assert answer["decision"] == "block"
        assert "MOD104 sample-leak: net.py:3" in answer["reason"]
        assert edit(self.event(project), project) is None

    def test_what_could_not_be_checked_is_said_and_stops_nothing(self, project: Path, verdicts: list) -> None:
        verdicts[:] = [(2, ["net.py:1: invalid syntax"])]
        answer = edit(self.event(project), project)
        assert answer
        assert "decision" not in answer
        assert "invalid syntax" in answer["hookSpecificOutput"]["additionalContext"]

    def test_healthy_models_and_other_files_are_passed_over(self, project: Path, verdicts: list) -> None:
        assert edit(self.event(project), project) is None
        verdicts[:] = [FAILED]
        (project / "test_net.py").write_text("class Net(nn.Module): pass\n")
        (project / "tool.py").write_text("print()\n")
        for name in ("test_net.py", "tool.py", "README.md", "missing.py"):
            assert edit(self.event(project, name), project) is None
        (project / "verify.yaml").unlink()
        assert edit(self.event(project), project) is None


class TestStop:
    def test_a_session_that_changed_nothing_ends(self, project: Path, verdicts: list) -> None:
        verdicts[:] = [FAILED]
        start(SESSION, project)
        assert stop(SESSION, project) is None

    def test_changed_code_must_pass_and_a_reason_is_said_once(self, project: Path, verdicts: list) -> None:
        verdicts[:] = [FAILED]
        start(SESSION, project)
        (project / "net.py").write_text("class Net(nn.Module): x = 1\n")
        answer = stop(SESSION, project)
        assert answer
        assert answer["decision"] == "block"
        assert "MOD104" in answer["reason"]
        again = stop(SESSION | {"stop_hook_active": True}, project)
        assert again
        assert "decision" not in again
        assert "Ended without acceptance" in again["systemMessage"]
        verdicts[:] = [(1, ["GRD301 gradient-missing: net.py:4"])]
        other = stop(SESSION, project)
        assert other
        assert "GRD301" in other["reason"]

    def test_a_verdict_newer_than_the_change_is_enough(self, project: Path, verdicts: list) -> None:
        start(SESSION, project)
        (project / "net.py").write_text("class Net(nn.Module): x = 1\n")
        assert stop(SESSION, project) is None
        verdicts[:] = [FAILED]
        assert stop(SESSION, project) is None  # not looked at again
        (project / "net.py").write_text("class Net(nn.Module): x = 2\n")
        assert stop(SESSION, project)
        accept(project)
        assert stop(SESSION, project) is None

    def test_going_on_with_a_session_does_not_forgive_its_changes(self, project: Path, verdicts: list) -> None:
        verdicts[:] = [FAILED]
        start(SESSION, project)
        (project / "net.py").write_text("class Net(nn.Module): x = 1\n")
        start(SESSION, project)
        assert stop(SESSION, project)

    def test_results_are_no_code(self, project: Path) -> None:
        before = fingerprint(project)
        (project / "runs").mkdir()
        (project / "runs" / "copy.py").write_text("x\n")
        (project / "notes.txt").write_text("x\n")
        assert fingerprint(project) == before
        (project / "verify.yaml").write_text("model: other.py:Net\n")
        assert fingerprint(project) != before


class TestCommand:
    def call(self, name: str, project: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kit", "hook", name],
            input=text,
            cwd=project,
            env=os.environ | {"CLAUDE_PROJECT_DIR": str(project)} | environment,
            capture_output=True,
            text=True,
        )

    def test_answers_in_json_alone(self, project: Path) -> None:
        event = SESSION | {"tool_name": "Edit", "tool_input": {"file_path": "evaluate.py"}, "cwd": str(project)}
        result = self.call("guard", project, json.dumps(event))
        assert (result.returncode, result.stderr) == (0, "")
        assert json.loads(result.stdout)["hookSpecificOutput"]["permissionDecision"] == "deny"

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
    def test_a_guard_that_breaks_refuses(self, text: str, project: Path) -> None:
        result = self.call("guard", project, text)
        assert result.returncode == 2
        assert result.stderr.startswith("kit hook guard: ")
        assert result.stderr.count("\n") == 1

    def test_a_broken_clauderc_refuses(self, project: Path) -> None:
        (project / ".clauderc").write_text("{")
        event = SESSION | {"tool_name": "Edit", "tool_input": {"file_path": "net.py"}}
        result = self.call("guard", project, json.dumps(event))
        assert result.returncode == 2
        assert "is not valid JSON" in result.stderr

    def test_is_switched_off_by_one_setting(self, project: Path) -> None:
        for name in ("start", "guard", "edit", "stop"):
            result = self.call(name, project, "{", KIT_HOOKS="off")
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    def test_checks_a_real_model(self, project: Path) -> None:
        (project / "net.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n        self.head = nn.Linear(12, 4)\n"
            "    def forward(self, x):\n        return self.head(x.flatten(1) - x.flatten(1).mean(0))\n"
        )
        (project / "verify.yaml").write_text("model: net.py:Net\ninput_size: [3, 2, 2]\nnum_classes: 4\n")
        event = SESSION | {"tool_input": {"file_path": str(project / "net.py")}}
        result = self.call("edit", project, json.dumps(event))
        assert "MOD104 sample-leak" in json.loads(result.stdout)["reason"]

    @pytest.mark.parametrize(
        ("options", "accepted"), [((), True), (("--quick",), False), (("--tolerance", "50%"), False)]
    )
    def test_only_the_whole_spec_is_an_acceptance(
        self, options: tuple[str, ...], accepted: bool, project: Path
    ) -> None:
        (project / "net.py").write_text("from torch import nn\nNet = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))\n")
        (project / "verify.yaml").write_text(
            "model: net.py:Net\ninput_size: [3, 2, 2]\nexpect_params: 52\nselect: [MOD103]\n"
        )
        command = [sys.executable, "-m", "kit", "verify", *options]
        assert subprocess.run(command, cwd=project, env=os.environ | {"CLAUDECODE": "1"}).returncode == 0
        assert is_accepted(project, fingerprint(project)) == accepted

    def test_imports_no_torch(self, project: Path) -> None:
        code = "import sys, kit.claude.hooks; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0

    def test_unknown_hook_is_one_line(self, project: Path) -> None:
        result = self.call("x", project, "{}")
        assert result.returncode == 2
        assert "no hook is called 'x'" in result.stderr


@pytest.mark.parametrize(("event", "code"), [("PreToolUse", 2), ("PostToolUse", 0), ("SessionStart", 0), ("Stop", 0)])
def test_a_crash_refuses_where_it_guards_and_passes_where_it_advises(event: str, code: int, tmp_path: Path) -> None:
    command = entries()[event][0]["hooks"][0]["command"]
    (tmp_path / "kit").write_text("#!/bin/sh\nexit 2\n")
    (tmp_path / "kit").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    broken = subprocess.run(["sh", "-c", command], env={"PATH": path}, capture_output=True, text=True)
    assert broken.returncode == code
    missing = subprocess.run(["sh", "-c", command], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert missing.returncode == 0
    off = subprocess.run(["sh", "-c", command], env={"PATH": path, "KIT_HOOKS": "off"}, capture_output=True, text=True)
    assert (off.returncode, off.stdout) == (0, "")
    for result in (broken, missing):
        assert not result.stdout or "systemMessage" in json.loads(result.stdout)
