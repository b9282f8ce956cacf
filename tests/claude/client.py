"""The real client in an environment of its own: nothing of the user's is read, and nothing but loopback is reached."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.claude.doctor import TESTED

from .stub import Stub

VERSION = TESTED
TIMEOUT = 120
NOWHERE = "http://127.0.0.1:9"  # for what asks nothing of any service
LINES_IN, LINES_OUT = ("--input-format", "stream-json"), ("--output-format", "stream-json", "--verbose")
PROJECT_ONLY = (
    *("--permission-mode", "default", "--setting-sources", "project", "--no-session-persistence"),
    *("--strict-mcp-config", "--mcp-config", '{"mcpServers":{}}'),
)


@dataclass
class Outcome:
    """What came of a call of the client.

    Args:
        code: its exit code.
        events: its output, an event a line.
        stderr: its other output.
    """

    code: int
    events: list[dict[str, Any]] = field(default_factory=list)
    stderr: str = ""

    @property
    def init(self) -> dict[str, Any]:
        """The event that lists commands, skills and agents."""
        return next(event for event in self.events if event.get("subtype") == "init")

    @property
    def result(self) -> dict[str, Any]:
        """The last event."""
        return next(event for event in self.events if event.get("type") == "result")


class Client:
    """The client with a home of its own.

    Args:
        binary: the program.
        home: an empty folder outside of every project.
    """

    def __init__(self, binary: Path, home: Path) -> None:
        self.binary, self.home = binary, home
        self.config = home / "config"
        self.config.mkdir(parents=True)

    def environment(self, url: str, extra: Mapping[str, str]) -> dict[str, str]:
        """A clean environment; the key is a dummy."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "CLAUDE_CONFIG_DIR": str(self.config),
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "dummy",
            "NO_PROXY": "127.0.0.1,localhost",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
            "LANG": "C.UTF-8",
            **extra,
        }

    def trust(self, project: Path, *, trusted: bool) -> None:
        """Answer the question whether the folder is trusted."""
        projects = {str(project): {"hasTrustDialogAccepted": trusted}}
        answers = {"hasCompletedOnboarding": True, "theme": "dark", "projects": projects}
        (self.config / ".claude.json").write_text(json.dumps(answers))

    def start(
        self, project: Path, arguments: Sequence[str], *, url: str = NOWHERE, stdin: str = "", **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the client in a folder, with its own environment."""
        environment = self.environment(url, extra)
        command = [str(self.binary), *arguments]
        return subprocess.run(
            command, cwd=project, env=environment, input=stdin, capture_output=True, text=True, timeout=TIMEOUT
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of the client's that asks nothing of any service."""
        return self.start(self.home, arguments)

    def commands(self, project: Path) -> list[dict[str, Any]]:
        """All commands, as an editor is told of them; nothing is asked of any service."""
        self.trust(project, trusted=True)
        request = {"type": "control_request", "request_id": "1", "request": {"subtype": "initialize"}}
        run = self.start(project, ["-p", *LINES_IN, *LINES_OUT, *PROJECT_ONLY], stdin=json.dumps(request) + "\n")
        answer = next(answer for answer in _events(run) if answer.get("type") == "control_response")
        return answer["response"]["response"]["commands"]

    def ask(self, prompt: str, project: Path, stub: Stub, *options: str, trusted: bool = True) -> Outcome:
        """Give the client a prompt in a project, without a terminal."""
        self.trust(project, trusted=trusted)
        run = self.start(project, ["-p", prompt, *LINES_OUT, *PROJECT_ONLY, *options], url=stub.url)
        return Outcome(run.returncode, _events(run), run.stderr)

    def converse(self, prompts: list[str], project: Path, stub: Stub) -> Outcome:
        """Give the client one prompt after the other, in one session."""
        self.trust(project, trusted=True)
        messages = [{"type": "user", "message": {"role": "user", "content": prompt}} for prompt in prompts]
        lines = "".join(json.dumps(message) + "\n" for message in messages)
        run = self.start(project, ["-p", *LINES_IN, *LINES_OUT, *PROJECT_ONLY], url=stub.url, stdin=lines)
        return Outcome(run.returncode, _events(run), run.stderr)


def _events(run: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
