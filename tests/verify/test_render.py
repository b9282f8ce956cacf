"""Reports for the terminal, for programs and for CI: what is shown, in which order, and how much of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from verify.github import render_github
from verify.render import duration, render_json, render_junit, render_text
from verify.report import Check, Report, Status

LOST = Check(
    code="DAT201",
    name="train-augmentation-lost",
    status=Status.FAIL,
    measured="50 of 50 train images equal",
    expected="different",
    message="the split shares its dataset with validation",
    hint="give each split its own view",
    location="data.py:41",
)
NOTE = Check(
    code="OPT707", name="decay-on-norm-and-bias", status=Status.NOTE, message="biases shrink too", location="train.py:9"
)
HELD = Check(code="MOD103", name="parameter-count", status=Status.PASS, measured="1,485")


def text(report: Report, width: int | None = None) -> list[str]:
    """The lines of the text report, without the markup of rich."""
    from rich.text import Text

    lines: list[str] = []
    render_text(report, "kit watch -- python train.py", lambda line: lines.append(Text.from_markup(line).plain), width)
    return lines


def a_hundred() -> Report:
    """A run: findings of every kind, and far more that held or was skipped than anyone reads."""
    checks = [
        LOST,
        Check(code="EVL603", name="mean-of-batch-means", status=Status.WARN, measured="0.4%", location="train.py:62"),
        Check(code="RUN075", name="waits-for-input", status=Status.ERROR, message="it asked for a name"),
        NOTE,
        Check(code="LRS802", name="schedule-horizon-off", status=Status.PASS, measured="1e-3 -> 0 over 50 epochs"),
        Check(code="CKP014", name="resume-loses-state", status=Status.PASS, measured="equal " + "bit for bit " * 20),
    ]
    for number in range(60):
        measured = f"{number} of 100 things" if number % 4 == 0 else ""
        checks.append(Check(code=f"LOS{number:03}", name=f"silent-{number}", status=Status.PASS, measured=measured))
    for number in range(30):
        reason = f"reason {number % 11}"
        checks.append(Check(code=f"AMP{number:03}", name=f"skipped-{number}", status=Status.SKIP, message=reason))
    return Report(target="python train.py", seconds=41.3, checks=checks, notes=["epochs were cut to 4 batches"])


def part(lines: list[str], begin: str, end: str) -> list[str]:
    starts = [number for number, line in enumerate(lines) if line.startswith(begin)]
    ends = [number for number, line in enumerate(lines) if line.startswith(end) and number > starts[0]]
    return lines[starts[0] : ends[0]]


# -- notes -----------------------------------------------------------------------------------------------------------


def test_a_note_is_never_a_problem() -> None:
    assert Report(target="t", checks=[NOTE]).exit_code == 0
    assert Report(target="t", checks=[NOTE, HELD]).passed
    assert Report(target="t", checks=[NOTE, LOST]).exit_code == 1
    assert Report(target="t", checks=[]).exit_code == 2


def test_json_knows_a_note_as_a_pass_with_its_message() -> None:
    (check,) = json.loads(render_json(Report(target="t", checks=[NOTE])))["checks"]
    assert (check["status"], check["message"]) == ("pass", "biases shrink too")


def test_a_note_survives_the_way_from_the_child() -> None:
    from dataclasses import asdict

    assert Check.from_json(json.loads(json.dumps(asdict(NOTE)))) == NOTE


def test_junit_has_a_note_as_a_passed_test_with_output() -> None:
    suite = ElementTree.fromstring(render_junit(Report(target="t", checks=[NOTE, LOST, HELD])).encode())[0]
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("3", "1", "0")
    note, lost, held = suite
    assert [child.tag for child in note] == ["system-out"]
    assert "biases shrink too" in (note[0].text or "")
    assert lost[0].tag == "failure"
    assert len(held) == 0


def test_junit_holds_whatever_a_message_holds() -> None:
    nasty = Check(code="X", name="x", status=Status.FAIL, message="a\x00b\x1b[31m\ud800<&>", location="é.py:1")
    suite = ElementTree.fromstring(render_junit(Report(target="t\x07", checks=[nasty])).encode())[0]
    assert suite[0][0].attrib["message"] == "ab[31m<&>"


# -- text ------------------------------------------------------------------------------------------------------------


def test_problems_come_first_then_what_held_then_what_was_skipped_then_notes() -> None:
    lines = text(a_hundred())
    heads = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert heads == ["kit", "FAIL", "ERROR", "WARN", "ok", "skip", "note", "note"]
    assert lines[0].startswith(
        "kit watch -- python train.py   1 error, 1 check could not be carried out, 1 warning in 41 s"
    )


def test_a_finding_has_its_place_on_the_first_line_then_numbers_then_the_fix() -> None:
    assert part(text(a_hundred()), "FAIL", "ERROR") == [
        "FAIL  DAT201 train-augmentation-lost  data.py:41",
        "      the split shares its dataset with validation",
        "      measured 50 of 50 train images equal, expected different",
        "      fix: give each split its own view",
    ]


@pytest.mark.parametrize("width", [None, 80, 118, 200])
def test_a_hundred_checks_read_in_ten_seconds(width: int | None) -> None:
    lines = text(a_hundred(), width)
    held, skipped = part(lines, "ok", "skip"), part(lines, "skip", "note")
    assert len(held) <= 1 + 5
    assert len(skipped) <= 1 + 6
    assert held[0] == "ok    62 checks"
    assert all(len(line) <= (width or 120) for line in held[1:])
    # One of each family before a second of any.
    assert held[1].startswith("      schedule-horizon-off: 1e-3 -> 0 over 50 epochs;")
    assert "resume-loses-state: equal bit for bit" in "".join(held)
    # Everything is counted: what is named and what is only a number.
    names = set(re.findall(r"\b[a-z]+-[a-z0-9-]+", " ".join(held)))
    more = [int(number) for number in re.findall(r"(\d+) more", "".join(held))]
    assert len(names) + sum(more) == 62
    assert "other reasons" in skipped[-1]


def test_a_report_about_a_model_shows_every_value_and_every_name() -> None:
    checks = [HELD, *(Check(code=f"MOD{n}", name=f"rule-{n}", status=Status.PASS) for n in range(104, 120))]
    checks.append(Check(code="MOD120", name="late", status=Status.SKIP, message="stopped by what MOD103 reports"))
    lines = text(Report(target="cnn", checks=checks), 118)
    assert "      MOD103 parameter-count: 1,485" in lines
    assert all(f"rule-{number}" in " ".join(lines) for number in range(104, 120))
    assert "      MOD120: stopped by what MOD103 reports" in lines


def test_markup_in_a_message_is_text() -> None:
    check = Check(code="X1", name="x", status=Status.FAIL, message="[bold]x[/] [0, 1]", location="a[0].py:3")
    lines = text(Report(target="t", device="[cpu]", checks=[check]), 80)
    assert "      [bold]x[/] [0, 1]" in lines
    assert "FAIL  X1 x  a[0].py:3" in lines


def test_a_long_command_keeps_the_verdict_whole() -> None:
    lines: list[str] = []
    render_text(Report(target="t", checks=[HELD]), "kit watch -- " + "python train.py " * 20, lines.append, 80)
    assert any(line.startswith("[bold green]passed[/] in 0.0 s") for line in lines)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (41.3, "41 s"), (59.9, "60 s"), (200, "3 min 20 s")]
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


# -- where ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("train.py:41", ("train.py", 41)),
        ("net.py:7 Net.forward", ("net.py", 7)),
        ("src/my project/data.py:3, in collate", ("src/my project/data.py", 3)),
        ("config.yaml:18 (weight_decay)", ("config.yaml", 18)),
        ("/abs/train.py:9", ("/abs/train.py", 9)),
        (r"C:\code\train.py:9", (r"C:\code\train.py", 9)),
        ("layer1.0.conv (Conv2d, made at models/net.py:12)", ("models/net.py", 12)),
        ("layer1.0.conv1 (Conv2d)", None),
        ("stem.0.weight, stem.1.bias", None),
        ("train.py", None),
        ("train.py:0", None),
        ("ratio 1.5:3", None),
        ("", None),
    ],
)
def test_file_and_line_of_a_location(location: str, expected: tuple[str, int] | None) -> None:
    assert Check(code="X", name="x", status=Status.FAIL, location=location).source_line == expected


# -- assertions in a test ----------------------------------------------------------------------------------------------


def test_assertions_say_what_is_wrong() -> None:
    report = Report(target="net.py:Net", checks=[HELD, NOTE, LOST])
    report.assert_held("MOD103", "OPT")
    with pytest.raises(AssertionError, match=r"FAIL  DAT201 train-augmentation-lost  data.py:41\n.*shares its dataset"):
        report.assert_passed()
    with pytest.raises(AssertionError, match="DAT201"):
        report.assert_held("MOD", "DAT")
    with pytest.raises(AssertionError, match="CKP011 was not checked"):
        Report(target="t", checks=[HELD]).assert_held("CKP011")
    with pytest.raises(AssertionError, match="nothing was checked"):
        Report(target="t").assert_passed()


def test_a_rule_that_was_skipped_has_not_held() -> None:
    skipped = Check(code="MOD106", name="state-dict-incomplete", status=Status.SKIP, message="it is random")
    Report(target="t", checks=[HELD, skipped]).assert_passed()
    with pytest.raises(AssertionError, match="it is random"):
        Report(target="t", checks=[HELD, skipped]).assert_held("MOD106")


# -- GitHub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _outside_of_a_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)


@pytest.mark.usefixtures("_outside_of_a_workflow")
def test_annotations_of_a_workflow() -> None:
    lines = render_github(a_hundred()).splitlines()
    assert lines[0] == (
        "::error file=data.py,line=41,title=DAT201 train-augmentation-lost::"
        "the split shares its dataset with validation%0A"
        "measured 50 of 50 train images equal, expected different%0Afix: give each split its own view"
    )
    commands = [line.split()[0] for line in lines]
    assert commands == ["::error", "::error", "::warning", "::notice", "kit:"]
    assert "0.4%25" in lines[2]
    assert lines[-1] == ("kit: python train.py: 1 error, 1 check could not be carried out, 1 warning in 41 s on cpu")


@pytest.mark.usefixtures("_outside_of_a_workflow")
def test_nothing_in_a_finding_becomes_a_command() -> None:
    nasty = Check(
        code="X1",
        name="a,b::c\n::error::x",
        status=Status.WARN,
        message="100% sure\r\n::add-mask::secret",
        location="dir, with comma/a.py:3",
    )
    report = Report(target="a\n::stop-commands::token", checks=[nasty])
    lines = render_github(report).split("\n")
    assert len(lines) == 2
    assert lines[0].startswith("::warning file=")
    assert "title=X1 a%2Cb%3A%3Ac%0A%3A%3Aerror%3A%3Ax::" in lines[0]
    assert lines[0].partition("x::")[2].startswith("100%25 sure%0D%0A::add-mask::secret")
    assert not lines[1].startswith("::")


def test_files_are_named_from_the_root_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "data.py").write_text("")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert "file=project/data.py,line=41," in render_github(Report(target="t", checks=[LOST]))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path / "elsewhere"))
    assert "file=data.py,line=41," in render_github(Report(target="t", checks=[LOST]))
