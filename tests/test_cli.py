"""The command line as a contract: verbs, options, exit codes, and what is never imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from verify.rules import all_rules

ROOT = Path(__file__).resolve().parent.parent


def kit(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kit", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["rules"], ["explain", "MOD104"], ["verify", "--help"], ["new", "--help"]]
)
def test_never_imports_what_it_does_not_need(arguments: list[str]) -> None:
    script = (
        "import sys; from kit.cli import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "except BaseException: pass\n"
        "heavy = {'torch', 'torchvision', 'tensorboard', 'matplotlib', 'copier', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


INTERRUPTED_WITHIN_AN_IMPORT = """
import kit.cli

def interrupted():
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        return 130

kit.cli._run = interrupted
kit.cli.main()
"""


def test_an_interrupt_within_an_import_ends_with_its_exit_code(tmp_path: Path) -> None:
    """Of `python -m`, an interrupt that has gone through an exec makes Python forget the exit code."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_WITHIN_AN_IMPORT, encoding="utf-8")
    result = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, timeout=60)
    assert result.returncode == 130


def test_the_verbs_and_their_options_are_frozen() -> None:
    """Scripts call these; a change here is a change of an interface."""
    expected = {
        "new": {"--model", "--dataset", "--config", "--tracker", "--data"},
        "verify": {
            "--model", "--kwargs", "--input-size", "--num-classes", "--output-size", "--expect-params", "--tolerance",
            "--project",
            "--train-steps", "--device", "--require-gpu", "--select", "--ignore", "--timeout", "--format", "--html",
            "--output", "--record",
        },
        "watch": {
            "--max-train-batches", "--max-val-batches", "--max-epochs", "--timeout", "--quick", "--full", "--select",
            "--ignore", "--record", "--format", "--html", "--output",
        },
        "init": {"--workflows", "--dry-run", "--remove"},
        "doctor": set(),
        "facts": set(),
        "rules": {"--json"},
        "explain": set(),
        "demo": {"--epochs", "--download"},
    }  # fmt: skip
    verbs = re.findall(r"^  (\w+) ", kit("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert set(verbs) == set(expected)
    for verb, options in expected.items():
        found = set(re.findall(r"(--[a-z-]+)", kit(verb, "--help").stdout.partition("Options:")[2]))
        assert found - {"--help"} >= options, verb


def test_rules_are_listed_and_explained() -> None:
    listed = json.loads(kit("rules", "--json").stdout)
    assert [entry["code"] for entry in listed] == list(all_rules())
    assert {entry["severity"] for entry in listed} <= {"fail", "warn", "note", "error"}
    text = kit("rules").stdout
    for code, rule in all_rules().items():
        assert code in text
        assert rule.name in text
    explained = kit("explain", "mod104").stdout
    for part in ("sample-leak", "Why it matters", "Found by", "Not an error"):
        assert part in explained


@pytest.mark.parametrize("code", list(all_rules()))
def test_every_rule_has_a_full_page(code: str) -> None:
    page = all_rules()[code].page
    for part in ("Why it matters: ", "Found by: ", "Not an error: "):
        assert part in page, f"{code} lacks {part!r}"


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["frobnicate"], "No such command"),
        (["verify", "--nothing"], "No such option"),
        (["verify", "net.py:Net"], "name the model with --model"),
        (["verify", "--timeout", "soon"], "--timeout"),
        (["verify", "--format", "yaml"], "--format"),
        (["explain", "MOD999"], "no rule has the code"),
        (["new"], "dest"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], phrase: str) -> None:
    result = kit(*arguments)
    assert result.returncode == 2
    assert phrase in result.stderr
    assert result.stderr.count("\n") == 1


def test_rule_pages_in_the_docs_are_current() -> None:
    script = ROOT / "docs" / "make_rules.py"
    made = subprocess.run(
        [sys.executable, str(script), "--print"], capture_output=True, text=True, timeout=60, check=True
    )
    assert made.stdout == (ROOT / "docs" / "rules.md").read_text(), "run `make docs`"
