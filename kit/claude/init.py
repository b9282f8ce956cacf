"""`kit init`: commands and settings for Claude Code in a project that exists, and `--remove`, which takes them out.

A manifest, `.claude/kit.json`, holds what was written and, of files that the user shares with us, what they were
before. So an update replaces what the kit wrote and nothing else, and removal leaves the project as it was, byte for
byte, unless the user has changed a file since: then our part is taken out of it and the rest stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from kit import __version__
from kit.claude.clauderc import FILE, ClaudeError, ClaudeRc, read_clauderc, read_json, remarks
from kit.claude.hooks import entries
from kit.claude.merge import CLAUDE_BLOCK, GIT_BLOCK, Ours, check_settings, put_settings, take_settings
from kit.paths import project_files

MANIFEST = ".claude/kit.json"
SETTINGS, MEMORY, GITIGNORE = ".claude/settings.json", "CLAUDE.md", ".gitignore"
SHARED = (SETTINGS, MEMORY, GITIGNORE)
WORKFLOWS = ("cnn", "resnet", "vit", "debug", "data", "experiments", "deploy", "quick")
STARTER = ".claude/start_training.py"  # what /train starts a long run with
RULES = """
## Evidence before claims

- "Fixed", "trained" or "better" comes with a command, its exit code and a number. After a change of model code:
  `kit verify` (without a verify.yaml: `kit verify --model FILE.py:CLASS --input-size C,H,W --num-classes N`); of the
  training: `kit watch -- python train.py`. Only exit code 0 is called "verified"; 2 means that it could not be checked.
- Validation data choose, test data report once. A failing check is mended in the code, not in the check.
- `kit facts` says what is here: config, models, data, checkpoints, the newest run.
""".strip("\n")
Action = Literal["write", "update", "keep", "delete", "restore", "same"]


@dataclass
class Shared:
    """A file that the user shares with the kit.

    Args:
        original: its text without the kit; None for no file.
        written: sha256 of what the kit wrote.
    """

    original: str | None
    written: str


@dataclass
class Manifest:
    """What the kit wrote into a project.

    Args:
        version: of the kit.
        files: path -> sha256 of a file that is ours alone.
        shared: path -> what is known of a file that is the user's too.
        ours: our part of the settings, without what the user had already.
        folders: that were made, innermost last.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    version: str = __version__
    files: dict[str, str] = field(default_factory=dict)
    shared: dict[str, Shared] = field(default_factory=dict)
    ours: Ours = field(default_factory=Ours)
    folders: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """A step of a plan.

    Args:
        path: from the project's root.
        action: what happens to it.
        text: what is written.
        why: for the user, where it is no plain writing.
    """

    path: str
    action: Action
    text: str | None = None
    why: str = ""


@dataclass
class Plan:
    """What `kit init` is about to do; nothing is written before the whole plan stands.

    Args:
        project: its root.
        changes: in order.
        manifest: as it will be; None where the kit is taken out.
        notes: what the user would want to know.
    """

    project: Path
    changes: list[Change]
    manifest: Manifest | None
    notes: list[str]

    def carry_out(self) -> None:
        """Write, restore and delete.

        Raises:
            ClaudeError: a file cannot be written.
        """
        try:
            self._carry_out()
        except OSError as error:
            raise ClaudeError(f"cannot write {error.filename}: {error.strerror}") from None

    def _carry_out(self) -> None:
        folders = _read_manifest(self.project).folders
        manifest = self.project / MANIFEST
        if self.manifest is not None:
            # First, so that what an interrupted run has written is known to the next one.
            written = [MANIFEST, *(change.path for change in self.changes if change.text is not None)]
            self.manifest.folders = folders + [f for f in _missing_folders(self.project, written) if f not in folders]
            _write(manifest, json.dumps(asdict(self.manifest), indent=1, ensure_ascii=False) + "\n")
        for change in self.changes:
            path = self.project / change.path
            if change.action in ("write", "update", "restore") and change.text is not None:
                _write(path, change.text)
            elif change.action in ("delete", "restore"):
                path.unlink(missing_ok=True)
        if self.manifest is None:
            manifest.unlink(missing_ok=True)
            _remove_empty(self.project, folders)


def plan_init(project: Path, workflows: list[str] | None = None) -> Plan:
    """What to write into a project.

    Args:
        project: its root.
        workflows: names out of WORKFLOWS; None for all.

    Raises:
        ClaudeError: a file of the user's cannot be read, or a workflow is unknown.
    """
    before = _read_manifest(project)
    manifest = Manifest()
    wanted = dict(_own_files(project, workflows))
    changes = list(_own_changes(project, before, wanted, manifest))
    rc = ClaudeRc(**_default_rc(project)) if FILE in wanted else read_clauderc(project / FILE)
    ours = Ours(allow=_allowed(wanted), deny=rc.denials(), hooks=entries())
    changes += [_shared_change(project, path, before, manifest, rc, ours) for path in SHARED]
    return Plan(project, changes, manifest, list(remarks(rc, project)))


def plan_removal(project: Path) -> Plan:
    """What to take out of a project.

    Raises:
        ClaudeError: there is nothing of the kit in it.
    """
    if not (project / MANIFEST).is_file():
        raise ClaudeError(f"{project / MANIFEST} is not there: `kit init` has written nothing into this project")
    before = _read_manifest(project)
    changes = [_removal(project, path, digest) for path, digest in before.files.items()]
    for path in before.shared:
        text = _original(project, path, before)
        changes.append(Change(path, "restore", text))
    return Plan(project, changes, None, [])


def describe(plan: Plan) -> Iterator[str]:
    """The plan, a line for each file that changes or that the user may wonder about."""
    signs = {"write": "+", "update": "~", "keep": "=", "delete": "-", "restore": "~", "same": ""}
    for change in plan.changes:
        if change.action != "same":
            sign = "-" if change.action == "restore" and change.text is None else signs[change.action]
            yield f"{sign} {change.path}" + (f"  ({change.why})" if change.why else "")
    yield from (f"note: {note}" for note in plan.notes)


def _own_files(project: Path, workflows: list[str] | None) -> Iterator[tuple[str, str]]:
    """Path and text of each file that is ours alone; `.clauderc` only where there is none yet, or it is ours."""
    unknown = next((name for name in workflows or [] if name not in WORKFLOWS), None)
    if unknown:
        raise ClaudeError(f"no workflow is called {unknown!r}; name some of {', '.join(WORKFLOWS)}")
    files = project_files()
    for path in sorted((files / ".claude" / "commands").glob("*.md")):
        family = path.stem.split("-")[0]
        is_general = family not in WORKFLOWS
        if workflows is None or is_general or family in workflows:
            yield f".claude/commands/{path.name}", path.read_text(encoding="utf-8")
    for path in sorted([*files.glob(".claude/skills/*/SKILL.md"), *files.glob(".claude/agents/*.md")]):
        yield path.relative_to(files).as_posix(), path.read_text(encoding="utf-8")
    yield STARTER, (files / STARTER).read_text(encoding="utf-8")
    if not (project / FILE).exists():
        yield FILE, json.dumps(_rc_as_json(_default_rc(project)), indent=2) + "\n"


def _own_changes(project: Path, before: Manifest, wanted: dict[str, str], manifest: Manifest) -> Iterator[Change]:
    for path, text in wanted.items():
        current, known = _digest_of(project / path), before.files.get(path)
        new = _digest(text)
        if current == new:
            yield Change(path, "same")
        elif current is None:
            yield Change(path, "write", text)
        elif known is None:
            yield Change(path, "keep", why="yours, and not the kit's; it stays")
            continue
        elif current != known:
            yield Change(path, "keep", why="changed by you since the kit wrote it; it stays")
            manifest.files[path] = known
            continue
        else:
            yield Change(path, "update", text)
        if current != new or known:
            manifest.files[path] = new
    for path, digest in before.files.items():
        if path not in wanted and path != FILE:
            yield _removal(project, path, digest)
        elif path == FILE and path not in wanted:
            manifest.files[path] = digest


def _removal(project: Path, path: str, digest: str) -> Change:
    current = _digest_of(project / path)
    if current is None:
        return Change(path, "same")
    if current != digest:
        return Change(path, "keep", why="changed by you since the kit wrote it; it stays")
    return Change(path, "delete")


def _shared_change(project: Path, path: str, before: Manifest, manifest: Manifest, rc: ClaudeRc, ours: Ours) -> Change:
    original = _original(project, path, before)
    if path == SETTINGS:
        new, added = put_settings(project / path, original, ours)
        manifest.ours = added
    elif path == MEMORY:
        new = CLAUDE_BLOCK.put(original, [*rc.imports(), "", *RULES.splitlines()])
    else:
        new = GIT_BLOCK.put(original, rc.git_lines())
    manifest.shared[path] = Shared(original, _digest(new))
    current = _digest_of(project / path)
    action: Action = "same" if current == _digest(new) else "write" if current is None else "update"
    return Change(path, action, new)


def _original(project: Path, path: str, before: Manifest) -> str | None:
    """What a shared file would be without the kit; None for none at all."""
    file = project / path
    text = check_settings(file) if path == SETTINGS else _text(file)
    known = before.shared.get(path)
    if text is None or known is None:
        return text
    if _digest(text) == known.written:
        return known.original
    if text == known.original:  # an interrupted run did not come to it
        return text
    if path == SETTINGS:
        rest = take_settings(text, before.ours)
        nothing = json.loads(rest).keys() <= {"$schema"}
    else:
        rest = (CLAUDE_BLOCK if path == MEMORY else GIT_BLOCK).take(text)
        nothing = not rest.strip()
    return None if nothing and known.original is None else rest


def _allowed(wanted: dict[str, str]) -> list[str]:
    """The checks that every command may run, and what /train and /evaluate may, without asking."""
    rules: dict[str, None] = {}
    for path, text in wanted.items():
        if path.startswith(".claude/commands/"):
            tools = yaml.safe_load(text.split("---\n")[1]).get("allowed-tools", [])
            shell = [tool for tool in tools if tool.startswith("Bash(")]
            is_core = Path(path).stem in ("train", "evaluate", "acceptance")
            rules |= dict.fromkeys(tool for tool in shell if is_core or tool.startswith("Bash(kit "))
    return list(rules)


def _default_rc(project: Path) -> dict[str, tuple[str, ...]]:
    """A first `.clauderc`: what is large or made again, what a reader should know, what measures the result."""
    ignore = ["**/__pycache__/**", "**/.ipynb_checkpoints/**", "**/*.pt", "**/*.pth", ".git/**"]
    ignore += [f"{name}/**" for name in ("data/raw", "datasets") if (project / name).is_dir()]
    included = [name for name in ("README.md", "requirements.txt", "config.yaml") if (project / name).is_file()]
    protected = [name for name in ("evaluate.py", "eval.py", "test.py") if (project / name).is_file()]
    protected += [f"{name}/**" for name in ("data/raw", "data/test") if (project / name).is_dir()]
    return {"ignore": tuple(ignore), "always_include": tuple(included), "protect": tuple(protected)}


def _rc_as_json(rc: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    return {
        "ignore": list(rc["ignore"]),
        "context": {"always_include": list(rc["always_include"])},
        "protect": list(rc["protect"]),
    }


def _read_manifest(project: Path) -> Manifest:
    try:
        raw = read_json(project / MANIFEST)
    except FileNotFoundError:
        return Manifest()
    from pydantic import TypeAdapter, ValidationError

    broken = ClaudeError(f"{project / MANIFEST} is not what `kit init` writes; restore it, or delete it")
    try:
        manifest = TypeAdapter(Manifest).validate_python(raw)
    except ValidationError:
        raise broken from None
    paths = [*manifest.files, *manifest.shared, *manifest.folders]
    # It comes with the project: it must not lead out of it.
    inside = all(".." not in Path(path).parts and not Path(path).is_absolute() for path in paths)
    if not inside or not set(manifest.shared) <= set(SHARED):
        raise broken
    return manifest


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise ClaudeError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ClaudeError(f"{path} cannot be read: {error.strerror}") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of(path: Path) -> str | None:
    text = _text(path)
    return None if text is None else _digest(text)


def _write(path: Path, text: str) -> None:
    """Write in one step, with the line ends as they are in `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.kit-tmp")
    temporary.write_bytes(text.encode("utf-8"))
    if path.exists():
        temporary.chmod(path.stat().st_mode)
    temporary.replace(path)


def _missing_folders(project: Path, paths: list[str]) -> list[str]:
    """The folders that these files need and that are not there, outermost first."""
    needed = {str(parent) for path in paths for parent in Path(path).parents if not (project / parent).exists()}
    return sorted(needed, key=len)


def _remove_empty(project: Path, folders: list[str]) -> None:
    for name in sorted(set(folders), key=len, reverse=True):
        folder = project / name
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
