"""`kit init` in projects of others, and `kit doctor`."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kit.claude import doctor, init
from kit.claude.clauderc import ClaudeError, read_clauderc
from kit.claude.doctor import examine
from kit.claude.init import MANIFEST, plan_init, plan_removal
from kit.claude.merge import CLAUDE_BLOCK
from kit.cli import app

THEIR_SETTINGS = '{"model": "opus",\n   "permissions": {"allow": ["Bash(ls *)"], "deny": ["Read(/secret/**)"]}}\n'
THEIR_MEMORY = "# Mine\r\n\r\n@README.md\r\nNo newline at the end"


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


def kit(*arguments: str, cwd: Path) -> Ended:
    """The command line, in this process."""
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(app, arguments)
    return Ended(result.exit_code, result.stdout, result.stderr)


def snapshot(project: Path) -> dict[str, bytes | None]:
    """Content of every file, None for a folder."""
    return {
        str(path.relative_to(project)): path.read_bytes() if path.is_file() else None for path in project.rglob("*")
    }


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project that has nothing to do with the kit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "theirs"
    (folder / ".claude" / "commands").mkdir(parents=True)
    (folder / "data" / "raw").mkdir(parents=True)
    (folder / ".claude" / "settings.json").write_text(THEIR_SETTINGS)
    (folder / ".claude" / "commands" / "deploy.md").write_text("Deploy to our cluster.\n")
    (folder / "CLAUDE.md").write_bytes(THEIR_MEMORY.encode())
    (folder / "README.md").write_text("# Theirs\n")
    (folder / "evaluate.py").write_text("print('measure')\n")
    (folder / "net.py").write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    return folder


class TestInit:
    def test_writes_commands_and_settings_beside_theirs(self, project: Path) -> None:
        result = kit("init", cwd=project)
        assert (result.returncode, result.stderr) == (0, "")
        assert (project / ".claude" / "commands" / "vit-5-model.md").is_file()
        settings = json.loads((project / ".claude" / "settings.json").read_text())
        assert settings["model"] == "opus"
        assert settings["permissions"]["allow"][0] == "Bash(ls *)"
        assert "Bash(kit verify *)" in settings["permissions"]["allow"]
        assert settings["permissions"]["deny"][0] == "Read(/secret/**)"
        assert {"Read(/data/raw/**)", "Edit(/evaluate.py)"} <= set(settings["permissions"]["deny"])
        assert "Bash(docker build *)" not in settings["permissions"]["allow"]
        memory = (project / "CLAUDE.md").read_bytes().decode()
        assert memory.startswith(THEIR_MEMORY)
        assert memory.count("@README.md") == 1
        assert "data/raw/**" in (project / ".gitignore").read_text()
        assert (project / ".claude" / "skills" / "kit-evidence" / "SKILL.md").is_file()
        assert (project / ".claude" / "agents" / "kit-data-auditor.md").is_file()

    def test_a_command_of_theirs_stays_and_is_named(self, project: Path) -> None:
        result = kit("init", cwd=project)
        assert (project / ".claude" / "commands" / "deploy.md").read_text() == "Deploy to our cluster.\n"
        assert "= .claude/commands/deploy.md  (yours, and not the kit's; it stays)" in result.stdout

    def test_removal_leaves_the_project_as_it_was(self, project: Path) -> None:
        before = snapshot(project)
        assert kit("init", cwd=project).returncode == 0
        assert snapshot(project) != before
        assert kit("init", "--remove", cwd=project).returncode == 0
        assert snapshot(project) == before

    def test_removal_from_an_empty_project_leaves_nothing(self, tmp_path: Path) -> None:
        plan_init(tmp_path).carry_out()
        assert (tmp_path / ".clauderc").is_file()
        plan_removal(tmp_path).carry_out()
        assert snapshot(tmp_path) == {}

    def test_dry_run_shows_and_writes_nothing(self, project: Path) -> None:
        before = snapshot(project)
        result = kit("init", "--dry-run", cwd=project)
        assert "+ .claude/commands/train.md" in result.stdout
        assert "~ CLAUDE.md" in result.stdout
        assert snapshot(project) == before

    @pytest.mark.parametrize("written", [1, 40, 65, 66])
    def test_an_interrupted_run_is_taken_up_and_out(
        self, written: int, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = snapshot(project)
        real, count = init._write, iter(range(1000))

        def write(path: Path, text: str) -> None:
            if next(count) == written:
                raise KeyboardInterrupt
            real(path, text)

        monkeypatch.setattr(init, "_write", write)
        with pytest.raises(KeyboardInterrupt):
            plan_init(project).carry_out()
        monkeypatch.undo()
        plan_init(project).carry_out()
        assert (project / "CLAUDE.md").read_text().count(CLAUDE_BLOCK.opening) == 1
        plan_removal(project).carry_out()
        assert snapshot(project) == before

    def test_a_lost_manifest_doubles_nothing(self, project: Path) -> None:
        plan_init(project).carry_out()
        (project / MANIFEST).unlink()
        plan_init(project).carry_out()
        assert (project / "CLAUDE.md").read_text().count(CLAUDE_BLOCK.opening) == 1
        settings = json.loads((project / ".claude" / "settings.json").read_text())
        assert settings["permissions"]["allow"].count("Bash(kit verify *)") == 1

    def test_again_changes_nothing(self, project: Path) -> None:
        kit("init", cwd=project)
        before = snapshot(project)
        result = kit("init", cwd=project)
        assert snapshot(project) == before
        assert [line for line in result.stdout.splitlines() if line[:1] in "+~-"] == []

    def test_an_edit_of_clauderc_is_carried_out(self, project: Path) -> None:
        before = snapshot(project)
        kit("init", cwd=project)
        rc = project / ".clauderc"
        rc.write_text('{"ignore": ["big/**"], "context": {"always_include": ["net.py"]}}')
        assert kit("init", cwd=project).returncode == 0
        denied = json.loads((project / ".claude" / "settings.json").read_text())["permissions"]["deny"]
        assert denied == ["Read(/secret/**)", "Read(/big/**)"]
        memory = (project / "CLAUDE.md").read_bytes().decode()
        assert memory.count(CLAUDE_BLOCK.opening) == 1
        assert "@net.py" in memory.splitlines()
        assert (project / ".gitignore").read_text().splitlines()[1] == "big/**"
        kit("init", "--remove", cwd=project)
        rc.unlink()  # theirs by now, so it stayed
        assert snapshot(project) == before

    def test_what_they_add_after_us_survives_update_and_removal(self, project: Path) -> None:
        kit("init", cwd=project)
        path = project / ".claude" / "settings.json"
        settings = json.loads(path.read_text())
        settings["permissions"]["allow"].append("Bash(make *)")
        settings["hooks"] = {"Stop": [{"hooks": [{"type": "command", "command": "true"}]}]}
        path.write_text(json.dumps(settings))
        with (project / "CLAUDE.md").open("a") as memory:
            memory.write("\nMore of mine\n")
        kit("init", cwd=project)
        kit("init", "--remove", cwd=project)
        left = json.loads(path.read_text())
        assert left["permissions"] == {"allow": ["Bash(ls *)", "Bash(make *)"], "deny": ["Read(/secret/**)"]}
        assert left["hooks"] == settings["hooks"]
        assert (project / "CLAUDE.md").read_bytes().decode().startswith(THEIR_MEMORY)
        assert "More of mine" in (project / "CLAUDE.md").read_text()
        assert "kit" not in (project / "CLAUDE.md").read_text()

    def test_a_command_that_they_changed_stays(self, project: Path) -> None:
        kit("init", cwd=project)
        changed = project / ".claude" / "commands" / "train.md"
        changed.write_text(changed.read_text() + "\nAnd in our way.\n")
        result = kit("init", cwd=project)
        assert "= .claude/commands/train.md  (changed by you since the kit wrote it; it stays)" in result.stdout
        kit("init", "--remove", cwd=project)
        assert "And in our way." in changed.read_text()

    @pytest.mark.parametrize(
        "text", ['{"permissions": null}', '{"permissions": {"allow": 1}}', '{"hooks": {"Stop": 5}}']
    )
    def test_settings_that_were_spoiled_since_are_one_line(self, text: str, project: Path) -> None:
        kit("init", cwd=project)
        (project / ".claude" / "settings.json").write_text(text)
        result = kit("init", cwd=project)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "the client ignores the whole file otherwise" in result.stderr
        assert kit("init", "--remove", cwd=project).returncode == 0
        assert json.loads((project / ".claude" / "settings.json").read_text()) == json.loads(text)

    def test_workflows_are_added_and_taken_away(self, project: Path) -> None:
        kit("init", "--workflows", "cnn, debug", cwd=project)
        names = {path.stem for path in (project / ".claude" / "commands").iterdir()}
        assert {"cnn-1-setup", "debug-nan", "debug-training", "train", "acceptance"} <= names
        assert not any(name.startswith(("vit", "resnet", "quick")) for name in names)
        kit("init", "--workflows", "vit", cwd=project)
        names = {path.stem for path in (project / ".claude" / "commands").iterdir()}
        assert "vit-1-plan" in names
        assert not any(name.startswith(("cnn", "debug")) for name in names)

    @pytest.mark.parametrize(
        ("path", "text", "message"),
        [
            (".claude/settings.json", '{"permissions": ', "settings.json:1:17 is not valid JSON"),
            (".claude/settings.json", '{"permissions": {"deny": "x"}}', "permissions.deny must be a list"),
            (".clauderc", '{"ignored": []}', "unknown key 'ignored'; did you mean 'ignore'?"),
            (
                ".clauderc",
                '{"context": {"always": []}}',
                "unknown key 'context.always'; did you mean 'always_include'?",
            ),
            (".clauderc", '{"ignore": "data"}', "ignore must be a list of paths"),
            (".clauderc", "ignore: []", ".clauderc:1:1 is not valid JSON"),
            (".claude/kit.json", '{"x": 1}', "is not what `kit init` writes"),
            (".claude/kit.json", '{"files": []}', "is not what `kit init` writes"),
            (".claude/kit.json", '{"shared": {"CLAUDE.md": {}}}', "is not what `kit init` writes"),
            (".claude/kit.json", '{"files": {"../out.txt": "0"}}', "is not what `kit init` writes"),
            (".claude/kit.json", '{"shared": {"net.py": {}}}', "is not what `kit init` writes"),
        ],
    )
    def test_a_broken_file_is_one_line_and_nothing_is_written(
        self, path: str, text: str, message: str, project: Path
    ) -> None:
        (project / path).write_text(text)
        before = snapshot(project)
        result = kit("init", cwd=project)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert snapshot(project) == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("init", "nowhere"), "the folder nowhere does not exist"),
            (("init", "--remove"), "`kit init` has written nothing into this project"),
            (("init", "--workflows", "cn"), "no workflow is called 'cn'"),
        ],
    )
    def test_wrong_use_is_one_line(self, arguments: tuple[str, ...], message: str, project: Path) -> None:
        result = kit(*arguments, cwd=project)
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1

    def test_code_that_the_patterns_hide_is_named(self, project: Path) -> None:
        (project / "data" / "dataloader.py").write_text("")
        (project / ".clauderc").write_text('{"ignore": ["**/data/**"], "context": {"always_include": ["config.yaml"]}}')
        result = kit("init", cwd=project)
        assert "note: ignore: **/data/** hides code from Claude: data/dataloader.py" in result.stdout
        assert "note: context.always_include: config.yaml is not there" in result.stdout

    def test_the_guides_own_clauderc_is_understood(self, tmp_path: Path) -> None:
        ignore = ["**/__pycache__", "**/.ipynb_checkpoints", "**/data/**", "**/checkpoints/**", "**/*.pt", "**/.git"]
        (tmp_path / ".clauderc").write_text(
            json.dumps({"ignore": ignore, "context": {"always_include": ["README.md"]}})
        )
        rc = read_clauderc(tmp_path / ".clauderc")
        assert rc.denials()[2] == "Read(/**/data/**)"
        assert "**/.git" not in rc.git_lines()
        assert rc.imports() == ["@README.md"]


def findings(project: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in examine(project):
        found.setdefault(finding.level, []).append(f"{finding.where}: {finding.text}")
    return found


class TestDoctor:
    @pytest.fixture
    def healthy(self, project: Path) -> Path:
        (project / ".claude" / "commands" / "deploy.md").unlink()
        plan_init(project).carry_out()
        return project

    def test_is_content_with_what_init_wrote(self, healthy: Path) -> None:
        found = findings(healthy)
        assert "fail" not in found, found["fail"]
        assert "warn" not in found, found["warn"]
        result = kit("doctor", cwd=healthy)
        assert (result.returncode, result.stderr) == (0, "")
        assert "ok    .claude/commands: 58 commands" in result.stdout

    @pytest.mark.parametrize(
        ("path", "text", "level", "message"),
        [
            (".claude/settings.json", "{", "fail", "not valid JSON"),
            (".claude/settings.json", '{"permissions": {"deny": ["Write(/x)"]}}', "warn", "is never consulted"),
            (".claude/settings.json", '{"permissions": {"deny": ["Read(./x)"]}}', "warn", "counts from the shell"),
            (".claude/settings.json", '{"hooks": {"Stop": [{"matcher": ["a"]}]}}', "fail", "a matcher must be a text"),
            (".claude/settings.local.json", '{"permissions": {"allow": "x"}}', "fail", "must be a list of texts"),
            (".clauderc", '{"ignore": ["new/**"]}', "fail", "Read(/new/**) is not in force; run kit init"),
            (".clauderc", '{"ignor": []}', "fail", "did you mean 'ignore'?"),
            (".claudeignore", "data\n", "warn", "is not read by the client"),
            ("AGENTS.md", "x\n", "warn", "a line @AGENTS.md in CLAUDE.md includes it"),
            (".claude/commands/verify.md", "---\ndescription: x\n---\n", "fail", "a command of the client's own"),
            (".claude/commands/a.md", '---\ndescription: "a" b\n---\n', "fail", "broken frontmatter in line 2"),
            (".claude/commands/a.md", "Run $1\n", "fail", "positional argument $1: counting starts at $0"),
            (".claude/commands/a.md", "Look: !`ls || true`\n", "fail", "no rule allows: ls"),
            (".claude/commands/a.md", "---\nallowed-tools:\n---\nLook: !`ls || true`\n", "fail", "no rule allows: ls"),
            (".claude/commands/a.md", "---\narguments: one, two\n---\n$one\n", "fail", "argument never used: two"),
            (".claude/settings.json", '{"permissions": {"deny": null}}', "fail", "is not in force; run kit init"),
            (".claude/skills/x/SKILL.md", "---\nname: x\n---\n", "fail", "no description in its frontmatter"),
            (".claude/agents/x.md", "---\ndescription: x\n---\n", "fail", "no name in its frontmatter"),
            (".claude/skills/deep/x/SKILL.md", "---\ndescription: x\n---\n", "fail", "one level deep"),
        ],
    )  # fmt: skip
    def test_finds_what_the_client_would_not_say(
        self, path: str, text: str, level: str, message: str, healthy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "_hooks", lambda _: ())  # they have a test of their own
        (healthy / path).parent.mkdir(parents=True, exist_ok=True)
        (healthy / path).write_text(text)
        found = findings(healthy)
        assert [line for line in found.get(level, []) if message in line], found

    def test_runs_the_hooks_once(self, healthy: Path) -> None:
        assert any("4 ran once each" in line for line in findings(healthy)["ok"])
        settings = json.loads((healthy / ".claude" / "settings.json").read_text())
        settings["hooks"]["PreToolUse"][0]["hooks"][0]["command"] = "echo hello && true kit hook guard"
        settings["hooks"]["Stop"][0]["hooks"][0]["command"] = "kit hook stopp"
        (healthy / ".claude" / "settings.json").write_text(json.dumps(settings))
        assert kit("doctor", cwd=healthy).returncode == 1
        failed = findings(healthy)["fail"]
        assert "kit hook guard: prints what is no JSON: 'hello\\n'" in failed
        assert any(line.startswith("kit hook stopp: ends with 2: kit: no hook is called 'stopp'") for line in failed)

    def test_a_missing_kit_is_said(self, healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        assert any("not on the path, so no command finds it" in line for line in findings(healthy)["fail"])


def test_a_plan_that_cannot_be_written_is_an_error_of_the_users(tmp_path: Path) -> None:
    (tmp_path / ".claude").write_text("a file where the folder should be")
    with pytest.raises(ClaudeError, match="cannot"):
        plan_init(tmp_path).carry_out()


def test_manifest_is_the_only_new_file_that_is_not_for_the_client(project: Path) -> None:
    before = snapshot(project)
    plan_init(project).carry_out()
    new = {path for path in snapshot(project) if path not in before}
    folders = (".claude/commands/", ".claude/skills", ".claude/agents")
    assert {path for path in new if not path.startswith(folders)} == {
        MANIFEST,
        ".clauderc",
        ".gitignore",
        ".claude/start_training.py",
    }
