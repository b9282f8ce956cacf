"""The zoo itself: every patch fits, every program compiles, and the healthy programs run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .bugs import BUGS
from .model import Bug, Edit, PatchError, Program, Variation, programs
from .variations import HEALTHY

FAMILIES = "DAT|TRN|GRD|OPT|LRS|LOS|EVL|CKP|REP|AMP|EMA|DST|CFG|SRC|RUN|MOD"
PROGRAMS = programs()
PATCHED: list[Bug | Variation] = [*BUGS, *HEALTHY]


def compile_all(folder: Path) -> None:
    for path in folder.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.*")}


@pytest.mark.parametrize("patched", PATCHED, ids=lambda patched: patched.name)
def test_patch_fits_and_changes_the_program(patched: Bug | Variation, tmp_path: Path) -> None:
    program = next(program for program in PROGRAMS if program.name == patched.program)
    program.apply(tmp_path / "healthy")
    patched.apply(tmp_path / "patched")
    compile_all(tmp_path / "patched")
    assert texts(tmp_path / "patched") != texts(tmp_path / "healthy")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_program_is_whole(program: Program, tmp_path: Path) -> None:
    program.apply(tmp_path)
    compile_all(tmp_path)
    assert program.command[0] == "python"
    assert (tmp_path / program.command[1]).is_file()
    assert program.style
    assert program.about.endswith(".")


@pytest.mark.parametrize("old", ["no such text", "optimizer"])
def test_patch_that_does_not_fit_raises(old: str, tmp_path: Path) -> None:
    bug = Bug("odd", "argparse_script", [Edit("train.py", old, "")], {"TRN403"}, "own")
    with pytest.raises(PatchError, match="odd"):
        bug.apply(tmp_path)


def test_names_are_unique() -> None:
    names = [patched.name for patched in PATCHED]
    assert len(names) == len(set(names))


def test_the_zoo_is_large_and_spread() -> None:
    assert len(PROGRAMS) >= 8
    assert len(BUGS) >= 120
    assert len(HEALTHY) >= 36
    for program in PROGRAMS:
        assert sum(bug.program == program.name for bug in BUGS) >= 8, program.name


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_codes_and_source_are_well_formed(bug: Bug) -> None:
    assert bug.codes
    for code in bug.codes:
        assert re.fullmatch(rf"({FAMILIES})\d{{3}}", code), code
    assert re.fullmatch(r"[DMLOTSECRP]\d\d|own", bug.source)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_healthy_program_runs(program: Program, tmp_path: Path) -> None:
    for package in program.requires:
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    program.apply(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *program.command[1:]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
