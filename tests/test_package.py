"""The wheel holds everything: built, unpacked elsewhere, and used without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of a wheel that was built from an sdist of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True, timeout=300)
    (wheel,) = (folder / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def kit(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-m", "kit", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_wheel_holds_template_commands_and_reference_models(installed: Path) -> None:
    bundled = installed / "kit" / "bundled"
    template = bundled / "templates" / "pytorch_project" / "template"
    source = ROOT / "templates" / "pytorch_project" / "template"
    assert (bundled / "commands" / "train.md").read_text() == (source / ".claude/commands/train.md").read_text()
    assert (template / "train.py").read_text() == (source / "train.py").read_text()
    assert (installed / "verify" / "reference_models" / "cnn.py").read_text() == (source / "models/cnn.py").read_text()
    assert (installed / "verify" / "report.html.jinja").exists()
    packaged = {str(path.relative_to(installed)) for path in installed.rglob("*")}
    assert not [name for name in packaged if "__pycache__" in name or name.endswith(".pt") or "data/raw" in name]


def test_wheel_works_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import kit, verify; print(kit.__file__, verify.__file__)"],
        env={**os.environ, "PYTHONPATH": str(installed)}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(str(installed) in file for file in where.stdout.split())
    assert kit(installed, tmp_path, "new", "my proj", "--dataset", "digits").returncode == 0
    project = tmp_path / "my proj"
    assert (project / ".claude" / "commands" / "train.md").is_file()
    verified = kit(installed, project, "verify", "--html", "report.html")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "1,147,914" in verified.stdout
    assert kit(installed, tmp_path, "verify", "--model", "cnn", "--select", "MOD103").returncode == 0
