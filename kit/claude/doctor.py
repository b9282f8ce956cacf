"""`kit doctor`: will Claude Code see what is in this project, and do what it says?

The client says little when it drops something: a head that is no YAML loses its description, a rule in a wrong form is
skipped, a `.claudeignore` is never read. Each of these is a finding here, with the file and the way out.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from kit.claude.clauderc import FILE, ClaudeError, read_clauderc, read_json, remarks
from verify.source import words

Level = Literal["ok", "note", "warn", "fail"]
TESTED = "2.1.330"  # of the client, with which the commands are tested
LONGEST, SHORTEST, MOST_LINES = 1536, 40, 500
KNOWN_KEYS = words("""
    name description when_to_use argument-hint arguments disable-model-invocation user-invocable allowed-tools
    disallowed-tools model effort context agent background hooks paths shell metadata license compatibility
""")
# Built-in commands and bundled skills of the client: a file of such a name is shadowed, or shadows.
RESERVED = words("""
    agents batch claude-api clear code-review color compact config context dataviz debug deep-research doctor effort
    export fast fewer-permission-prompts focus goal init insights list-agents loop mcp model output-style plan recap
    rename review run run-skill-generator security-review simplify team-onboarding update-config usage verify
    workflow-authoring
""")
INJECTED = re.compile(r"(?:^|\s)!`([^`]+)`", re.MULTILINE)
VARIABLE = re.compile(r"(?<!\\)\$([A-Za-z_]\w*)")
SHELL_LINE = re.compile(r"^ {4,}((?:python|kit|make|tensorboard) .*)$", re.MULTILINE)
NEVER_CONSULTED = re.compile(r"^(Write|NotebookEdit|MultiEdit|Glob)\(")


@dataclass(frozen=True)
class Finding:
    """A line of the doctor's.

    Args:
        level: ok, note, warn or fail.
        where: the file, or what was looked at.
        text: what is so, and how to mend it.
    """

    level: Level
    where: str
    text: str

    @property
    def is_bad(self) -> bool:
        """Whether something will not work."""
        return self.level == "fail"

    def __str__(self) -> str:
        return f"{self.level:<5} {self.where}: {self.text}"


def examine(project: Path) -> Iterator[Finding]:
    """Everything that can be found out without starting a session."""
    yield from _programs(project)
    yield from _settings(project)
    yield from _hooks(project)
    yield from _clauderc(project)
    yield from _unread_files(project)
    yield from _commands(project)
    yield from _heads(project)


def command_problems(name: str, text: str) -> Iterator[str]:
    """What the client, or its user, would stumble over in a command file."""
    if name in RESERVED:
        yield f"/{name} is a command of the client's own: give the file another name"
    if text.count("\n") >= MOST_LINES:
        yield f"it has {text.count(chr(10))} lines, and all of them stay in the context: keep it under {MOST_LINES}"
    front, body, problem = head_of(text)
    if problem:
        yield problem
        return
    yield from _head_problems(front, text)
    yield from _argument_problems(front, body)
    yield from _shell_problems(front, body)


def head_of(text: str) -> tuple[dict[str, Any], str, str]:
    """Frontmatter, body, and what is wrong with the frontmatter."""
    if not text.startswith("---\n") or "\n---\n" not in text[3:]:
        return {}, text, ""
    _, head, body = text.split("---\n", 2)
    try:
        front = yaml.safe_load(head) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 2}" if mark else ""
        return {}, body, f"broken frontmatter{line}: the client drops description and rules; quote what has : [ or #"
    return (front, body, "") if isinstance(front, dict) else ({}, body, "broken frontmatter: it is no table of keys")


def _head_problems(front: dict[str, Any], text: str) -> Iterator[str]:
    if unknown := sorted(set(front) - KNOWN_KEYS):
        yield f"unknown keys {unknown}: the client ignores them"
    description = str(front.get("description", ""))
    if not SHORTEST <= len(description) <= LONGEST:
        yield f"its description has {len(description)} characters; {SHORTEST} to {LONGEST} are of use"
    if "argument-hint" in front and not re.search(r'^argument-hint: ".*"$', text, re.MULTILINE):
        yield "argument-hint not quoted: [a] [b] without quotes is no YAML"


def _argument_problems(front: dict[str, Any], body: str) -> Iterator[str]:
    for digit in re.findall(r"(?<!\\)\$(\d)", body):
        yield f"positional argument ${digit}: counting starts at $0; name them with `arguments:`, or write \\${digit}"
    named = _listed(front, "arguments")
    if "argument-hint" in front and not named and "$ARGUMENTS" not in body:
        yield "arguments never used: no $ARGUMENTS in the text"
    yield from (f"argument never used: {name}" for name in named if f"${name}" not in body)
    yield from (f"unknown argument: {name}" for name in sorted(set(VARIABLE.findall(body)) - {*named, "ARGUMENTS"}))


def _listed(front: dict[str, Any], key: str) -> list[str]:
    """A value of the frontmatter that may be a list, or a text with commas."""
    value = front.get(key) or []
    return [str(item).strip() for item in (value.split(",") if isinstance(value, str) else value)]


def _shell_problems(front: dict[str, Any], body: str) -> Iterator[str]:
    allowed = _listed(front, "allowed-tools")
    injected = INJECTED.findall(body)
    if body.count("!`") != len(injected):
        yield "an exclamation mark before a backtick that is no injection: put something between them"
    for line in injected:
        if not line.endswith("|| true"):
            yield f"would abort the command when it fails: {line}; end it with || true"
        yield from (f"no rule allows: {part}" for part in shell_parts(line) if not is_allowed(part, allowed))
    for line in SHELL_LINE.findall(body):
        if not is_allowed(line, allowed):
            yield f"no rule allows: {line}"


def shell_parts(line: str) -> list[str]:
    """The commands of a shell line; the client wants a rule for each."""
    return [part.strip() for part in re.split(r"\|\||&&|[|;]", line) if part.strip() != "true"]


def is_allowed(command: str, rules: list[str]) -> bool:
    """Whether a `Bash(...)` rule covers a command. `ls *` also covers the bare `ls`."""
    patterns = [rule[len("Bash(") : -1].replace(":*", " *") for rule in rules if rule.startswith("Bash(")]
    return any(fnmatch.fnmatchcase(command, p) or command == p.removesuffix(" *") for p in patterns)


def _programs(project: Path) -> Iterator[Finding]:
    if not shutil.which("kit"):
        yield Finding(
            "fail", "kit", "not on the path, so no command finds it; start claude where its environment is active"
        )
    client = shutil.which("claude")
    if not client:
        yield Finding("note", "claude", "not on the path; npm install -g @anthropic-ai/claude-code brings it")
        return
    try:
        shown = subprocess.run([client, "--version"], capture_output=True, text=True, timeout=30).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        shown = []
    version = shown[0] if shown else "unknown"
    yield Finding("ok", "claude", f"version {version}; the commands are tested with {TESTED}")


def _settings(project: Path) -> Iterator[Finding]:
    for name in ("settings.json", "settings.local.json"):
        where = f".claude/{name}"
        try:
            settings = read_json(project / ".claude" / name)
        except FileNotFoundError:
            continue
        except ClaudeError as error:
            yield Finding("fail", where, f"{error}: the client ignores the whole file, its deny rules included")
            continue
        problems = list(_settings_problems(settings))
        yield from (Finding(level, where, text) for level, text in problems)
        if not problems:
            yield Finding("ok", where, "valid")


def _settings_problems(settings: dict[str, Any]) -> Iterator[tuple[Level, str]]:
    permissions = settings.get("permissions", {})
    for key in ("allow", "ask", "deny"):
        rules = permissions.get(key, []) if isinstance(permissions, dict) else None
        if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
            yield "fail", f"permissions.{key} must be a list of texts: the client ignores the whole file"
            continue
        for rule in rules:
            if NEVER_CONSULTED.match(rule):
                yield "warn", f"permissions.{key}: {rule} is never consulted; Edit(...) covers every kind of edit"
            if re.match(r"^(Read|Edit)\((?!/|~|\*)", rule):
                yield "warn", f"permissions.{key}: {rule} counts from the shell's folder; (/...) from the project's"
    hooks = settings.get("hooks", {})
    for event, entries in hooks.items() if isinstance(hooks, dict) else ():
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and not isinstance(entry.get("matcher", ""), str):
                yield (
                    "fail",
                    f"hooks.{event}: a matcher must be a text such as Edit|Write: the client ignores the whole file",
                )


def _hooks(project: Path) -> Iterator[Finding]:
    """Run each hook of the kit's once, with an event that asks for nothing."""
    try:
        hooks = read_json(project / ".claude" / "settings.json").get("hooks", {})
        commands = [h["command"] for entries in hooks.values() for entry in entries for h in entry["hooks"]]
    except (FileNotFoundError, ClaudeError, AttributeError, KeyError, TypeError):
        return
    event = {"session_id": "doctor", "tool_name": "Read", "tool_input": {}, "cwd": str(project)}
    ours = [command for command in commands if "kit hook " in command]
    bad = 0
    for command in ours:
        name = command.split("kit hook ")[1].split()[0]
        problem = _hook_problem(command, json.dumps(event), project)
        bad += bool(problem)
        if problem:
            yield Finding("fail", f"kit hook {name}", problem)
    if ours and not bad:
        yield Finding("ok", "hooks", f"{len(ours)} ran once each")


def _hook_problem(command: str, event: str, project: Path) -> str:
    environment = os.environ | {"CLAUDE_PROJECT_DIR": str(project)}
    run = partial(subprocess.run, input=event, cwd=project, env=environment, capture_output=True, text=True)
    try:
        result = run(["sh", "-c", command], timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    if result.returncode or result.stderr.strip():
        return f"ends with {result.returncode}: {result.stderr.strip() or 'without a word'}"
    if result.stdout.strip() and not result.stdout.startswith("{"):
        return f"prints what is no JSON: {result.stdout[:60]!r}"
    return ""


def _clauderc(project: Path) -> Iterator[Finding]:
    path = project / FILE
    if not path.exists():
        return
    try:
        rc = read_clauderc(path)
    except ClaudeError as error:
        yield Finding("fail", FILE, str(error))
        return
    try:
        denied = list(read_json(project / ".claude" / "settings.json")["permissions"]["deny"])
    except (FileNotFoundError, ClaudeError, KeyError, TypeError):
        denied = []
    memory = project / "CLAUDE.md"
    imports = memory.read_text(encoding="utf-8", errors="replace").splitlines() if memory.is_file() else []
    missing = [rule for rule in rc.denials() if rule not in denied] + [i for i in rc.imports() if i not in imports]
    if missing:
        yield Finding("fail", FILE, f"Claude Code does not read it, and {missing[0]} is not in force; run kit init")
    else:
        yield Finding("ok", FILE, "carried out by settings.json and CLAUDE.md")
    yield from (Finding("warn", FILE, remark) for remark in remarks(rc, project))


def _unread_files(project: Path) -> Iterator[Finding]:
    advice = {
        ".claudeignore": "is not read by the client; put its patterns under `ignore` in .clauderc and run kit init",
        "AGENTS.md": "is not read by the client; a line @AGENTS.md in CLAUDE.md includes it",
    }
    memory = project / "CLAUDE.md"
    included = memory.read_text(encoding="utf-8", errors="replace") if memory.is_file() else ""
    for name, text in advice.items():
        if (project / name).exists() and f"@{name}" not in included:
            yield Finding("warn", name, text)


def _commands(project: Path) -> Iterator[Finding]:
    folder = project / ".claude" / "commands"
    paths = sorted(folder.rglob("*.md"))
    bad = 0
    for path in paths:
        where = str(path.relative_to(project))
        try:
            problems = list(command_problems(path.stem, path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            problems = [f"cannot be read: {error}"]
        bad += bool(problems)
        yield from (Finding("fail", where, problem) for problem in problems)
    if not paths:
        yield Finding("note", ".claude/commands", "no commands; kit init writes those of the kit")
    elif not bad:
        yield Finding("ok", ".claude/commands", f"{len(paths)} commands")


def _heads(project: Path) -> Iterator[Finding]:
    """Skills and agents are skipped in silence without name and description."""
    files = [*project.glob(".claude/skills/*/SKILL.md"), *project.glob(".claude/agents/*.md")]
    for path in sorted(files):
        front, _, problem = head_of(path.read_text(encoding="utf-8", errors="replace"))
        needed = ("description",) if path.name == "SKILL.md" else ("name", "description")
        missing = [key for key in needed if not front.get(key)]
        if problem or missing:
            text = problem or f"the client skips it: no {' and no '.join(missing)} in its frontmatter"
            yield Finding("fail", str(path.relative_to(project)), text)
    for path in sorted(project.glob(".claude/skills/*/*/**/SKILL.md")):
        yield Finding("fail", str(path.relative_to(project)), "skills are found one level deep; move it up")
