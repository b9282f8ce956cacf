"""The Copier template and `kit new`: what comes out, from each of the three ways in, and what wrong answers get."""

import errno
import filecmp
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from kit import paths
from kit.scaffold import ScaffoldError, new_project, questions

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "templates" / "pytorch_project"
CHOICES = {name: values for name, values in questions().items() if values}
COMBINATIONS = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]


def _own_tests(answers: dict[str, str]) -> Any:
    """Each model and each data set once is a slow test; the other pairs, which repeat them, are the matrix."""
    model, dataset = (CHOICES[key].index(answers[key]) for key in ("model", "dataset"))
    return pytest.param(answers, marks=pytest.mark.slow if model == dataset else pytest.mark.matrix)


OWN_TESTS = [_own_tests(answers) for answers in COMBINATIONS]

# What work in the unrendered tree leaves there. None of it may reach a new project, a wheel or a git repository.
LEFTOVERS = (
    "data/raw/cifar-10-batches-py/data_batch_1",
    "data/__pycache__/dataloader.cpython-311.pyc",
    "models/old.pyc",
    "checkpoints/last.pt",
    "checkpoints/config.yaml",
    "runs/cnn-1/metrics.jsonl",
    "nonfinite.pt",
    ".venv/bin/python",
    ".pytest_cache/README.md",
    ".ruff_cache/0.1/1",
    ".mypy_cache/x.json",
    ".DS_Store",
    ".claude/settings.local.json",
)


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Copier and git read settings of the user; a test must not depend on them."""
    settings = tmp_path_factory.mktemp("settings") / "copier.yml"
    settings.write_text("{}\n")
    monkeypatch.setenv("COPIER_SETTINGS_PATH", str(settings))
    monkeypatch.setenv("COPIER_CACHE_DIR", str(settings.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A Test")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "test@example.org")


@pytest.fixture(scope="module", params=COMBINATIONS, ids=lambda answers: "-".join(answers.values()))
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A project for each combination of answers, with a space in its path."""
    answers = request.param
    return new_project(tmp_path_factory.mktemp("rendered") / "my proj", **answers), answers


@pytest.fixture
def template_repo(tmp_path: Path) -> Path:
    """A git repository with what the kit's own has for Copier, tagged v0.1.0."""
    repo = tmp_path / "kit repo"
    repo.mkdir()
    shutil.copy(ROOT / "copier.yml", repo)
    for folder in ("templates", ".claude"):
        shutil.copytree(ROOT / folder, repo / folder, symlinks=True, ignore=ignore_leftovers)
    git(repo, "init", "--quiet")
    commit(repo, tag="v0.1.0")
    return repo


def ignore_leftovers(folder: str, names: list[str]) -> set[str]:
    tree = TEMPLATE / "template"
    inside = {"raw", "checkpoints", "runs"} if Path(folder) in (tree, tree / "data") else set()
    return set(names) & (inside | {"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"})


def git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout


def commit(folder: Path, tag: str | None = None) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", tag or "work")
    if tag:
        git(folder, "tag", tag)


def run_copier(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "copier", *arguments], cwd=cwd, capture_output=True, text=True)


def files(folder: Path) -> dict[str, bytes]:
    """Relative path and content of every file, git's own left out."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


class TestRendered:
    def test_has_every_file_of_the_contract(self, rendered: tuple[Path, dict[str, str]]) -> None:
        project, answers = rendered
        expected = (
            "data/dataloader.py models/model.py train.py evaluate.py config.yaml requirements.txt "
            "verify.yaml tests README.md CLAUDE.md .clauderc .gitignore .copier-answers.yml .claude/settings.json "
            ".claude/commands/train.md .claude/commands/evaluate.md"
        )
        assert [name for name in expected.split() if not (project / name).exists()] == []
        assert (project / "models" / f"{answers['model']}.py").exists()

    def test_other_architectures_are_left_out(self, rendered: tuple[Path, dict[str, str]]) -> None:
        project, answers = rendered
        names = set(files(project))
        for model in CHOICES["model"]:
            own = {f"models/{model}.py", f"tests/test_{model}.py"}
            assert names & own == (own if model == answers["model"] else set())
            commands = {name for name in names if name.startswith(f".claude/commands/{model}")}
            assert bool(commands) == (model == answers["model"])
        presets = {name for name in names if name.startswith("presets/")}
        assert presets == ({f"presets/{answers['model']}_paper.yaml"} if answers["model"] != "cnn" else set())

    def test_ablations_suit_the_data_set(self, rendered: tuple[Path, dict[str, str]]) -> None:
        project, answers = rendered
        found = {path.stem for path in project.glob("ablations/*.yaml")}
        patches = {
            "cifar10": {"patch_2", "patch_8"},
            "digits": {"patch_2", "patch_4"},
            "imagenet": {"patch_8", "patch_32"},
        }
        expected = {"no_positions", "relative_positions"} | patches[answers["dataset"]]
        assert found == (expected if answers["model"] == "vit" else set())
        assert (project / "ablate.py").exists() == bool(found)

    def test_recipes_are_those_of_the_sources(self, rendered: tuple[Path, dict[str, str]]) -> None:
        project, answers = rendered
        config = yaml.safe_load((project / "config.yaml").read_text())
        if answers["model"] == "resnet":
            seed = {"optimizer": "sgd", "momentum": 0.9, "scheduler": "cosine", "learning_rate": 0.1}
            seed |= {"min_learning_rate": 0.001, "grad_clip": 1.0, "checkpoint_every": 10, "val_fraction": 0.1}
            assert config.items() >= (seed | {"batch_size": 128, "num_workers": 4}).items()
            paper = yaml.safe_load((project / "presets" / "resnet_paper.yaml").read_text())
            assert (
                paper.items() >= {"milestones": [32000, 48000], "weight_decay": 0.0001, "blocks_per_stage": 3}.items()
            )
            assert paper["epochs"] * -(-45000 // paper["batch_size"]) == pytest.approx(64000, rel=0.01)
        if answers["model"] == "vit":
            paper = yaml.safe_load((project / "presets" / "vit_paper.yaml").read_text())
            assert paper["batch_size"] * paper["accumulation_steps"] == 4096
            numbers = {"learning_rate": 0.003, "warmup_steps": 10000, "weight_decay": 0.3, "epochs": 300}
            assert paper.items() >= (numbers | {"optimizer": "adamw", "dataset": "imagenet", "grad_clip": 1.0}).items()

    def test_answers_reach_config_and_answers_file(self, rendered: tuple[Path, dict[str, str]]) -> None:
        project, answers = rendered
        config = yaml.safe_load((project / "config.yaml").read_text())
        assert {name: config[name] for name in ("model", "dataset")} == {
            name: answers[name] for name in ("model", "dataset")
        }
        recorded = yaml.safe_load((project / ".copier-answers.yml").read_text())
        assert recorded.items() >= (answers | {"project_name": "my proj"}).items()
        assert "wrong_answer" not in recorded

    def test_no_jinja_is_left(self, rendered: tuple[Path, dict[str, str]]) -> None:
        project, _ = rendered
        content = files(project)
        assert [name for name in content if "jinja" in name or "{" in name] == []
        assert [name for name, text in content.items() if b"{{" in text or b"{%" in text] == []

    def test_python_is_the_templates_own(self, rendered: tuple[Path, dict[str, str]]) -> None:
        project, _ = rendered
        names = [name for name in files(project) if name.endswith(".py")]
        _, different, missing = filecmp.cmpfiles(project, TEMPLATE / "template", names, shallow=False)
        assert "train.py" in names
        assert (different, missing) == ([], [])

    def test_links_are_real_files(self, rendered: tuple[Path, dict[str, str]]) -> None:
        project, _ = rendered
        assert [path for path in project.rglob("*") if path.is_symlink()] == []

    def test_no_file_is_long(self, rendered: tuple[Path, dict[str, str]]) -> None:
        project, _ = rendered
        lengths = {name: text.count(b"\n") for name, text in files(project).items()}
        assert {name: lines for name, lines in lengths.items() if lines > 250} == {}

    def test_lints_and_formatting_changes_nothing(self, rendered: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
        project = shutil.copytree(rendered[0], tmp_path / "copy")
        git(project, "init", "--quiet")
        commit(project)
        check = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "."], cwd=project, capture_output=True, text=True
        )
        assert check.returncode == 0, check.stdout
        subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", "."], cwd=project, check=True)
        assert git(project, "status", "--porcelain") == ""

    @pytest.mark.parametrize("answers", OWN_TESTS, ids=lambda answers: "-".join(answers.values()))
    def test_passes_its_own_tests(self, answers: dict[str, str], tmp_path: Path) -> None:
        project = new_project(tmp_path / "my proj", **answers)
        result = subprocess.run([sys.executable, "-m", "pytest"], cwd=project, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-3000:]
        assert re.search(r"\d+ passed", result.stdout)

    @pytest.mark.slow
    def test_passes_kit_verify(self, rendered: tuple[Path, dict[str, str]]) -> None:
        command = [sys.executable, "-m", "kit", "verify"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=rendered[0], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", CHOICES["model"])
def test_a_project_passes_kit_watch(model: str, tmp_path: Path) -> None:
    project = new_project(tmp_path / "proj", model=model, dataset="digits")
    command = [sys.executable, "-m", "kit", "watch", "--quick", "--", sys.executable, "train.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_default_answers_give_the_committed_files(tmp_path: Path) -> None:
    project = new_project(tmp_path / "proj")
    both = [path.name.removesuffix(".jinja") for path in (TEMPLATE / "template").glob("*.jinja")]
    twice = [name for name in both if (TEMPLATE / "template" / name).exists()]
    assert "config.yaml" in twice
    for name in twice:
        assert (project / name).read_bytes() == (TEMPLATE / "template" / name).read_bytes(), name


def test_leftovers_of_the_unrendered_tree_stay_there(tmp_path: Path) -> None:
    template = shutil.copytree(TEMPLATE, tmp_path / "template", ignore=ignore_leftovers)
    copier.run_copy(str(template), tmp_path / "clean" / "proj", defaults=True, quiet=True)
    for name in LEFTOVERS:
        path = template / "template" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left behind")
    copier.run_copy(str(template), tmp_path / "dirty" / "proj", defaults=True, quiet=True)
    assert files(tmp_path / "dirty" / "proj") == files(tmp_path / "clean" / "proj")


def test_leftovers_of_a_project_are_ignored_by_git(tmp_path: Path) -> None:
    project = new_project(tmp_path / "proj")
    git(project, "init", "--quiet")
    assert git(project, "check-ignore", *LEFTOVERS).split() == list(LEFTOVERS)
    assert not subprocess.run(["git", "check-ignore", "data/dataloader.py"], cwd=project, capture_output=True).stdout


class TestWaysIn:
    def test_folder_git_address_and_kit_new_agree(self, tmp_path: Path, template_repo: Path) -> None:
        ways = {"folder": TEMPLATE, "git": template_repo}
        for name, source in ways.items():
            (tmp_path / name).mkdir()
            result = run_copier("copy", "--defaults", str(source), "my proj", cwd=tmp_path / name)
            assert result.returncode == 0, result.stderr
        new_project(tmp_path / "kit" / "my proj")
        made = {name: files(tmp_path / name / "my proj") for name in ("folder", "git", "kit")}
        answers = {name: yaml.safe_load(content.pop(".copier-answers.yml")) for name, content in made.items()}
        assert made["folder"] == made["git"] == made["kit"]
        assert answers["git"].pop("_commit") == "v0.1.0"
        assert len({str({key: value for key, value in a.items() if key != "_src_path"}) for a in answers.values()}) == 1

    def test_message_names_the_next_commands(self, tmp_path: Path) -> None:
        result = run_copier("copy", "--defaults", str(TEMPLATE), "my proj", cwd=tmp_path)
        for command in ('cd "my proj"', "python -m pytest", "python train.py", "python evaluate.py"):
            assert command in result.stderr

    def test_nothing_needs_trust(self) -> None:
        configs = [
            document
            for path in (ROOT / "copier.yml", TEMPLATE / "copier.yml")
            for document in yaml.safe_load_all(path.read_text().replace("!include", "include:"))
        ]
        keys = {key for document in configs if document for key in document}
        assert {"_subdirectory", "_exclude", "model"} <= keys
        assert keys & {"_tasks", "_migrations", "_jinja_extensions"} == set()

    def test_old_copier_gets_one_line(self) -> None:
        # StrictUndefined came with 9.15: older ones end in a traceback unless this says so first.
        config = yaml.safe_load((TEMPLATE / "copier.yml").read_text())
        assert config["_envops"] == {"undefined": "jinja2.StrictUndefined"}
        assert tuple(map(int, config["_min_copier_version"].split("."))) >= (9, 15)

    @pytest.mark.parametrize("name", sorted(CHOICES))
    def test_wrong_answer_is_one_line(self, name: str, tmp_path: Path) -> None:
        result = run_copier("copy", "--defaults", "--data", f"{name}=perceptron", str(TEMPLATE), "proj", cwd=tmp_path)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert f"{name}=perceptron: choose one of {', '.join(CHOICES[name])}'" in result.stderr
        assert not (tmp_path / "proj").exists()

    @pytest.mark.parametrize("name", ["", "  ", "two\nlines"])
    def test_wrong_project_name_is_one_line(self, name: str, tmp_path: Path) -> None:
        result = run_copier("copy", "--defaults", "--data", f"project_name={name}", str(TEMPLATE), "proj", cwd=tmp_path)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert "project_name: must be one line of printable text" in result.stderr


class TestUpdate:
    @pytest.fixture
    def newer_template(self, template_repo: Path) -> Path:
        """v0.2.0: one comment of the configuration and the head of train.py differ, and there is a new file."""
        tree = template_repo / "templates" / "pytorch_project" / "template"
        for name in ("config.yaml", "config.yaml.jinja"):
            text = (tree / name).read_text()
            assert "# images in a batch" in text
            (tree / name).write_text(text.replace("# images in a batch", "# images in each batch"))
        (tree / "train.py").write_text("# newer\n" + (tree / "train.py").read_text())
        (tree / "NEWS.md").write_text("new\n")
        commit(template_repo, tag="v0.2.0")
        return template_repo

    def edit(self, project: Path) -> None:
        """What a user does with a project: other settings, a rule for the agent, a model of their own."""
        config = project / "config.yaml"
        assert "epochs: 50 " in config.read_text()
        config.write_text(config.read_text().replace("epochs: 50 ", "epochs: 77 "))
        with (project / "CLAUDE.md").open("a") as file:
            file.write("\n- My own rule.\n")
        (project / "models" / "mine.py").write_text('"""Mine."""\n')
        commit(project)

    def check(self, project: Path) -> None:
        config = (project / "config.yaml").read_text()
        assert "epochs: 77 " in config
        assert "# images in each batch" in config
        assert (project / "CLAUDE.md").read_text().endswith("- My own rule.\n")
        assert (project / "models" / "mine.py").exists()
        assert (project / "train.py").read_text().startswith("# newer\n")
        assert (project / "NEWS.md").exists()
        assert not any(b"<<<<<<<" in text or name.endswith(".rej") for name, text in files(project).items())
        assert yaml.safe_load((project / ".copier-answers.yml").read_text())["_commit"] == "v0.2.0"

    def test_keeps_edits(self, tmp_path: Path, newer_template: Path) -> None:
        project = tmp_path / "my proj"
        data = {"dataset": "digits"}
        copier.run_copy(str(newer_template), project, data=data, vcs_ref="v0.1.0", defaults=True, quiet=True)
        git(project, "init", "--quiet")
        commit(project)
        self.edit(project)
        result = run_copier("update", "--defaults", cwd=project)
        assert result.returncode == 0, result.stderr
        self.check(project)
        assert yaml.safe_load((project / "config.yaml").read_text())["dataset"] == "digits"

    def test_project_of_kit_new_adopts_the_repository_first(self, tmp_path: Path, newer_template: Path) -> None:
        project = new_project(tmp_path / "my proj", dataset="digits")
        git(project, "init", "--quiet")
        commit(project)
        self.edit(project)
        refused = run_copier("update", "--defaults", cwd=project)
        assert refused.returncode == 1
        assert "cannot obtain old template references" in refused.stderr

        # The line is taken from the project's README, so that what it says is what works.
        [line] = re.findall(r"^    (copier copy .*)$", (project / "README.md").read_text(), flags=re.MULTILINE)
        line = line.replace("<version tag>", "v0.1.0").replace(
            "<git address of the kit>", shlex.quote(str(newer_template))
        )
        result = run_copier(*shlex.split(line)[1:], cwd=project)
        assert result.returncode == 0, result.stderr
        assert git(project, "status", "--porcelain").split() == ["M", ".copier-answers.yml"]

        commit(project)
        assert run_copier("update", "--defaults", cwd=project).returncode == 0
        self.check(project)
        assert yaml.safe_load((project / "config.yaml").read_text())["dataset"] == "digits"


class TestNewProject:
    def test_makes_missing_parents(self, tmp_path: Path) -> None:
        project = new_project(tmp_path / "a" / "b c" / "proj")
        assert project == tmp_path / "a" / "b c" / "proj"
        assert (project / "train.py").exists()
        assert [path.name for path in project.parent.iterdir()] == ["proj"]

    def test_takes_a_relative_path_with_a_space(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        assert new_project(Path("../my proj")) == tmp_path / "my proj"
        assert (tmp_path / "my proj" / "README.md").read_text().startswith("# my proj\n")

    def test_fills_the_current_folder_without_replacing_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / ".git").mkdir()
        monkeypatch.chdir(tmp_path)
        before = tmp_path.stat().st_ino
        new_project(Path())
        assert tmp_path.stat().st_ino == before
        assert Path("train.py").exists()
        assert not list(tmp_path.glob(".kit-new-*"))

    def test_folder_has_the_usual_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "usual").mkdir()
        assert new_project(tmp_path / "proj").stat().st_mode == (tmp_path / "usual").stat().st_mode

    def test_data_answers_further_questions(self, tmp_path: Path) -> None:
        project = new_project(
            tmp_path / "proj", dataset="digits", data={"project_name": "Digits & more", "dataset": "digits"}
        )
        assert (project / "README.md").read_text().startswith("# Digits & more\n")

    @pytest.mark.parametrize("settings", ["defaults: {dataset: digits}", "not a mapping"])
    def test_ignores_the_users_copier_settings(
        self, settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "settings.yml").write_text(settings)
        monkeypatch.setenv("COPIER_SETTINGS_PATH", str(tmp_path / "settings.yml"))
        project = new_project(tmp_path / "proj")
        assert yaml.safe_load((project / "config.yaml").read_text())["dataset"] == "cifar10"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"model": "vit-huge"}, "model=vit-huge: not offered by the template; choose one of cnn, resnet, vit"),
            (
                {"dataset": "mnist"},
                "dataset=mnist: not offered by the template; choose one of cifar10, digits, imagenet",
            ),
            ({"config": "toml"}, "config=toml: not offered"),
            ({"tracker": ""}, "tracker=: not offered"),
            ({"deploy": True}, "deploy: the template has no such question; it asks for project_name, model"),
            ({"data": {"colour": "red"}}, "colour: the template has no such question"),
            ({"data": {"wrong_answer": "x"}}, "wrong_answer: the template has no such question"),
            ({"data": {"_src_path": "x"}}, "_src_path: the template has no such question"),
            ({"model": "cnn", "data": {"model": "vit"}}, "model is given twice: cnn and, with --data, vit"),
            ({"data": {"project_name": "two\nlines"}}, "project_name: must be one line of printable text"),
            ({"data": {"project_name": " "}}, "project_name: must be one line of printable text"),
        ],
    )
    def test_wrong_answer_is_one_sentence(self, arguments: dict, message: str, tmp_path: Path) -> None:
        with pytest.raises(ScaffoldError, match=re.escape(message)) as caught:
            new_project(tmp_path / "proj", **arguments)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_refuses_a_folder_with_content_and_leaves_it(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ScaffoldError, match="exists and is not empty"):
            new_project(tmp_path)
        assert files(tmp_path) == {"notes.txt": b"mine"}

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "proj").write_text("mine")
        with pytest.raises(ScaffoldError, match="proj: is a file"):
            new_project(tmp_path / "proj")
        with pytest.raises(ScaffoldError, match="cannot write here"):
            new_project(tmp_path / "proj" / "below")
        assert files(tmp_path) == {"proj": b"mine"}

    def test_refuses_a_parent_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Not by permission bits: the suite may run as root, whom they do not stop.
        def denied(**_: object) -> str:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("tempfile.mkdtemp", denied)
        with pytest.raises(ScaffoldError, match=r"proj: cannot write here \(Permission denied\)"):
            new_project(tmp_path / "proj")

    def test_refuses_a_name_that_is_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(ScaffoldError, match="File name too long"):
            new_project(tmp_path / ("x" * 300))

    @pytest.mark.parametrize(
        ("fault", "raised"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), ScaffoldError),
            (copier.errors.UserMessageError("bad template"), ScaffoldError),
            (KeyboardInterrupt(), KeyboardInterrupt),
        ],
    )
    @pytest.mark.parametrize("exists", [True, False])
    def test_fault_in_the_middle_leaves_nothing(
        self, fault: BaseException, raised: type, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def half(_source: str, folder: Path, **_: object) -> None:
            folder.mkdir(parents=True)
            (folder / "train.py").write_text("half")
            raise fault

        dest = tmp_path / "new" / "proj" if not exists else tmp_path / "proj"
        if exists:
            dest.mkdir()
        monkeypatch.setattr(copier, "run_copy", half)
        with pytest.raises(raised):
            new_project(dest)
        assert [path.name for path in tmp_path.rglob("*")] == (["proj"] if exists else [])

    def test_fault_while_moving_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rename, calls = Path.rename, iter(range(100))

        def fails_at_the_third(self: Path, target: Path) -> Path:
            if next(calls) == 2:
                raise OSError(errno.EIO, "Input/output error")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fails_at_the_third)
        with pytest.raises(ScaffoldError, match="Input/output error"):
            new_project(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_imports_copier_only_when_it_renders(self) -> None:
        code = "import sys, kit.scaffold; sys.exit(any(name in sys.modules for name in ('copier', 'jinja2', 'torch')))"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


class TestPaths:
    def test_checkout(self) -> None:
        assert paths.template_dir() == TEMPLATE
        assert paths.commands_dir() == ROOT / ".claude" / "commands"

    def test_wheel_copy_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "kit")
        (tmp_path / "templates" / "pytorch_project").mkdir(parents=True)
        assert paths.template_dir() == tmp_path / "templates" / "pytorch_project"
        for name in ("templates/pytorch_project", "commands"):
            (tmp_path / "kit" / "bundled" / name).mkdir(parents=True)
        assert paths.template_dir() == tmp_path / "kit" / "bundled" / "templates" / "pytorch_project"
        assert paths.commands_dir() == tmp_path / "kit" / "bundled" / "commands"

    @pytest.mark.parametrize("kind", ["commands", "skills", "agents"])
    def test_links_lead_to_the_template(self, kind: str) -> None:
        originals = TEMPLATE / "template" / ".claude" / kind
        links = {path.name: path for path in (ROOT / ".claude" / kind).iterdir()}
        assert sorted(links) == sorted(path.name for path in originals.iterdir())
        for name, link in links.items():
            assert not link.readlink().is_absolute()
            assert link.resolve() == originals / name

    def test_templates_are_linked(self) -> None:
        assert (ROOT / ".claude" / "templates" / "pytorch_project").resolve() == TEMPLATE
