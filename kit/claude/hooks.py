"""The hooks of Claude Code: `kit hook NAME` reads an event from the standard input and answers in JSON.

    start   SessionStart   remembers the code as it is
    guard   PreToolUse     refuses to change what `.clauderc` protects; fails closed
    edit    PostToolUse    after an edit of a model's file: `kit verify --quick`, and what it finds; fails open
    stop    Stop           where code has changed, refuses to end before `kit verify` holds; says each reason once

`KIT_HOOKS=off`, under `env` in `.claude/settings.local.json`, switches all of them off.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kit.claude.clauderc import FILE, read_clauderc
from kit.claude.state import accept, fingerprint, is_accepted, read_session, write_session
from verify.source import words

Event = dict[str, Any]
OFF = "KIT_HOOKS"
BLOCKED = 2  # the exit code with which a hook that guards refuses
EDIT_SECONDS, STOP_SECONDS = 45, 150
EDITORS = "Edit|Write|MultiEdit|NotebookEdit"
# Programs that change what they are given. Others, and programs in Python, are not looked into.
WRITERS = words("rm mv tee truncate chmod chown unlink shred touch patch")
COPIES, EDITS_IN_PLACE = words("cp ln install rsync"), words("sed perl")
PREFIXES = words("sudo env command time nohup")
GIT_WRITERS = words("checkout restore apply rm mv clean reset stash")
SHOWN = 5


def entries() -> dict[str, list[dict[str, Any]]]:
    """The hooks as settings.json has them.

    A guard that crashes exits with 2, which refuses; where kit is missing the rules of `permissions.deny` remain, and
    the start of the session says so.
    """
    missing = json.dumps({"systemMessage": "kit is not on the path: its hooks do not run, rules alone protect files"})
    unchecked = json.dumps({"systemMessage": "kit hook stop did not run: nothing was checked"})
    unless_off = f'[ "${OFF}" = off ] || '
    return {
        "SessionStart": [_entry(f"{unless_off}kit hook start || echo '{missing}'", 20)],
        "PreToolUse": [
            _entry(f"{unless_off}! command -v kit > /dev/null || kit hook guard || exit 2", 20, f"{EDITORS}|Bash")
        ],
        "PostToolUse": [_entry(f"{unless_off}kit hook edit || true", EDIT_SECONDS + 15, EDITORS)],
        "Stop": [_entry(f"{unless_off}kit hook stop || echo '{unchecked}'", STOP_SECONDS + 30)],
    }


def _entry(command: str, seconds: int, matcher: str = "") -> dict[str, Any]:
    entry: dict[str, Any] = {"hooks": [{"type": "command", "command": command, "timeout": seconds}]}
    return {"matcher": matcher} | entry if matcher else entry


def run_hook(name: str) -> int:
    """Read the event, answer it; the exit code."""
    if os.environ.get(OFF) == "off":
        return 0
    event = json.load(sys.stdin)
    project = Path(os.environ.get("CLAUDE_PROJECT_DIR") or event.get("cwd") or ".").resolve()
    answer = HOOKS[name](event, project)
    if answer:
        print(json.dumps(answer))
    return 0


def start(event: Event, project: Path) -> None:
    """Remember the code as it is at the start; a session that goes on keeps what it has."""
    session = read_session(project, event["session_id"])
    if not session.code:
        session.code = fingerprint(project)
        write_session(project, event["session_id"], session)


def guard(event: Event, project: Path) -> Event | None:
    """Refuse a change of protected files by an editing tool or by a common shell command."""
    protected = read_clauderc(project / FILE).protect
    tool, arguments = event["tool_name"], event["tool_input"]
    if not protected:
        return None
    if tool == "Bash":
        here = Path(event.get("cwd") or project)
        touched = [here / name for name in written_by(arguments.get("command", ""))]
    else:
        touched = [project / path for key in ("file_path", "notebook_path") if (path := arguments.get(key))]
    for path in touched:
        pattern = _protecting(path, project, protected)
        if pattern:
            reason = (
                f"{path.name} is protected: .clauderc lists {pattern} under `protect`, because it measures the result. "
                "Change the code that is measured instead, or ask the user to change .clauderc."
            )
            return {
                "hookSpecificOutput": {
                    "hookEventName": "PreToolUse",
                    "permissionDecision": "deny",
                    "permissionDecisionReason": reason,
                }
            }
    return None


def written_by(command: str) -> Iterator[str]:
    """The paths that a shell line may change: arguments of programs that write, and targets of redirections."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:  # an open quote: the shell refuses it as well
        return
    words_of_command: list[str] = []
    redirected = False
    for token in [*tokens, ";"]:
        if set(token) <= set(";|&()"):
            yield from _changed_by(words_of_command)
            words_of_command = []
        elif set(token) <= set("<>&|"):
            redirected = ">" in token and not token.endswith("&")  # 2>&1 names no file
        elif redirected:
            redirected = False
            yield token
        else:
            words_of_command.append(token)


def _changed_by(command: list[str]) -> list[str]:
    """The arguments of one command that it changes."""
    while command and (command[0] in PREFIXES or re.fullmatch(r"\w+=.*", command[0])):
        command = command[1:]
    if not command:
        return []
    program, options = Path(command[0]).name, [part for part in command[1:] if part.startswith("-")]
    paths = [part for part in command[1:] if not part.startswith("-")]
    if program == "git":
        return paths[1:] if paths and paths[0] in GIT_WRITERS else []
    if program in EDITS_IN_PLACE:
        return paths if any(re.match(r"-\w*i|--in-place", option) for option in options) else []
    if program in COPIES:
        return paths[-1:]
    return paths if program in WRITERS else []


def _protecting(path: Path, project: Path, patterns: tuple[str, ...]) -> str:
    """The pattern that protects a path, or a folder that contains what is protected; empty if none does."""
    import pathspec

    resolved = path.resolve()
    if not resolved.is_relative_to(project):
        return ""
    relative = str(resolved.relative_to(project))
    for pattern in patterns:
        spec = pathspec.PathSpec.from_lines("gitignore", [f"/{pattern.lstrip('/')}"])
        inside = pattern.lstrip("/").split("*")[0].rstrip("/")
        holds = relative == "." or inside == relative or inside.startswith(f"{relative}/")
        if spec.match_file(relative) or (holds and resolved.is_dir()):
            return pattern
    return ""


def edit(event: Event, project: Path) -> Event | None:
    """After an edit of a file that defines a model: a fast check, and what it found if that is new."""
    path = Path(event["tool_input"].get("file_path", ""))
    if not (project / "verify.yaml").is_file() or not _defines_a_model(path):
        return None
    code, rows = verify(project, EDIT_SECONDS, "--quick")
    session = read_session(project, event["session_id"])
    if code == 0 or not session.is_new("edit\n" + "\n".join(rows)):
        return None
    write_session(project, event["session_id"], session)
    text = "\n".join([f"`kit verify --quick` after this edit exits with {code}:", *rows])
    if code == 1:
        return {"decision": "block", "reason": f"{text}\nMend it before going on; `kit explain CODE` says more."}
    return {"hookSpecificOutput": {"hookEventName": "PostToolUse", "additionalContext": text}}


def _defines_a_model(path: Path) -> bool:
    if path.suffix != ".py" or path.name.startswith("test_"):
        return False
    try:
        return "Module" in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def stop(event: Event, project: Path) -> Event | None:
    """Refuse to end while the code that this session changed does not pass; not twice for the same reason."""
    if not (project / "verify.yaml").is_file():
        return None
    session = read_session(project, event["session_id"])
    code_now = fingerprint(project)
    if code_now == session.code or is_accepted(project, code_now):
        return None
    code, rows = verify(project, STOP_SECONDS)
    if code == 0:
        accept(project)
        return None
    text = "\n".join([f"`kit verify` exits with {code} on the code as this session leaves it:", *rows])
    if not session.is_new("stop\n" + text):
        return {"systemMessage": f"Ended without acceptance. {text}"}
    write_session(project, event["session_id"], session)
    return {
        "decision": "block",
        "reason": f"{text}\nMend the cause in the code, or, if that is not possible now, say plainly in your report "
        "that it does not hold. This is not asked again for the same rows.",
    }


def verify(project: Path, seconds: int, *options: str) -> tuple[int, list[str]]:
    """Exit code of `kit verify` in the project, and its failed rows, one line each."""
    command = [sys.executable, "-m", "kit", "verify", "--format", "json", *options]
    try:
        run = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return 2, [f"it took more than {seconds} seconds"]
    try:
        checks = json.loads(run.stdout)["checks"]
    except (ValueError, KeyError):
        return run.returncode or 2, [run.stderr.strip() or "it said nothing"]
    bad = [check for check in checks if check["status"] in ("fail", "error")]
    rows = [_row(check) for check in bad[:SHOWN]]
    return run.returncode, [*rows, f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else rows


def _row(check: dict[str, Any]) -> str:
    said = [check.get(key) for key in ("location", "message", "measured")]
    hint = f"; fix: {check['hint']}" if check.get("hint") else ""
    return f"{check['code']} {check['name']}: " + ", ".join(str(part) for part in said if part) + hint


HOOKS: dict[str, Callable[[Event, Path], Event | None]] = {"start": start, "guard": guard, "edit": edit, "stop": stop}
