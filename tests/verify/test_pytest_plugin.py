"""The plugin of pytest: nothing unless asked, one test a rule when asked, and failures that read like a report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

# The same whether or not the plugin is installed as one.
LOADED = ("-p", "no:kit", "-p", "verify.pytest_plugin", "-p", "no:cacheprovider")

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, num_classes)
    def forward(self, x):
        x = self.conv(x - x.mean(dim=0)).relu()
        return self.head(x.mean(dim=(2, 3)))
"""

# Stands for the verifier, so that a test takes no seconds: what it reports is said in the spec's kwargs.
STUB = """
import pytest
import verify.runner
from verify.report import Check, Report, Status
from verify.rules import select_rules

CALLS = []

def verify_model(spec, **options):
    CALLS.append((spec, options))
    report = Report(target=spec.model)
    for rule in select_rules(spec.select, spec.ignore):
        status = Status(spec.kwargs.get(rule.code, "pass"))
        if status is Status.ERROR:
            report.checks.append(Check(code=rule.code, name=rule.name, status=status, message="it died"))
            break
        report.checks.append(
            Check(code=rule.code, name=rule.name, status=status, message=f"told {status}", location="net.py:7")
        )
    return report

verify.runner.verify_model = verify_model

def pytest_terminal_summary(terminalreporter):
    for spec, options in CALLS:
        terminalreporter.write_line(f"verified {spec.model} select={spec.select} {sorted(options.items())}")
"""


def write_spec(pytester: pytest.Pytester, *, select: str = "[MOD101, MOD104, MOD105]", **statuses: str) -> None:
    told = ", ".join(f"{code}: {status}" for code, status in statuses.items())
    pytester.path.joinpath("verify.yaml").write_text(f"model: net.py:Net\nselect: {select}\nkwargs: {{{told}}}\n")


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """In this process, with the stub in place of the verifier; which is restored afterwards."""
    import verify.runner

    real = verify.runner.verify_model
    if not pytester.path.joinpath("conftest.py").exists():
        pytester.makeconftest(STUB)
    try:
        return pytester.runpytest_inprocess(*LOADED, *arguments)
    finally:
        verify.runner.verify_model = real


def verified(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("verified ")]


def test_nothing_happens_unless_it_is_asked_for(pytester: pytest.Pytester) -> None:
    write_spec(pytester, MOD104="fail")
    pytester.makepyfile("def test_own(): pass")
    result = run(pytester)
    result.assert_outcomes(passed=1)
    assert not verified(result)


def test_loading_it_imports_neither_torch_nor_the_verifier() -> None:
    script = (
        "import sys, pytest; before = set(sys.modules); import verify.pytest_plugin; new = set(sys.modules) - before\n"
        "heavy = {name for name in new if name.split('.')[0] in ('torch', 'rich', 'yaml', 'pydantic', 'jinja2')}\n"
        "heavy |= {name for name in new if name.startswith('verify.')} - {'verify.pytest_plugin'}\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_a_spec_becomes_one_test_a_rule_and_is_verified_once(pytester: pytest.Pytester) -> None:
    write_spec(pytester, MOD104="fail")
    result = run(pytester, "--kit", "-v")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*verify.yaml::MOD101-model-builds PASSED*", "*::MOD104-sample-leak FAILED*"])
    assert len(verified(result)) == 1
    assert result.ret == 1


def test_a_failure_is_the_text_of_the_check_and_no_traceback(pytester: pytest.Pytester) -> None:
    write_spec(pytester, MOD104="fail")
    result = run(pytester, "--kit")
    result.stdout.fnmatch_lines(
        ["*_ MOD104 sample-leak of net.py:Net _*", "FAIL  MOD104 sample-leak  net.py:7", "      told fail"]
    )
    result.stdout.no_fnmatch_line("*runtest*")
    result.stdout.no_fnmatch_line("*Traceback*")


def test_statuses(pytester: pytest.Pytester) -> None:
    write_spec(pytester, MOD101="note", MOD104="warn", MOD105="skip")
    result = run(pytester, "--kit", "-rs")
    result.assert_outcomes(passed=2, skipped=1, warnings=1)
    result.stdout.fnmatch_lines(["*KitWarning: WARN  MOD104 sample-leak  net.py:7*", "*SKIPPED*told skip"])
    assert result.ret == 0


def test_warnings_fail_where_pytest_is_told_so(pytester: pytest.Pytester) -> None:
    write_spec(pytester, MOD104="warn")
    result = run(pytester, "--kit", "-W", "error::verify.pytest_plugin.KitWarning")
    result.assert_outcomes(passed=2, failed=1)


def test_what_could_not_be_checked_fails_and_what_it_hid_is_skipped(pytester: pytest.Pytester) -> None:
    write_spec(pytester, MOD101="error")
    result = run(pytester, "--kit", "-rs")
    result.assert_outcomes(failed=1, skipped=2)
    result.stdout.fnmatch_lines(["ERROR MOD101 model-builds", "*not reached, see MOD101*"])
    assert result.ret == 1


def test_only_what_is_left_after_deselecting_is_verified(pytester: pytest.Pytester) -> None:
    write_spec(pytester)
    result = run(pytester, "--kit", "-k", "sample-leak", "--kit-timeout", "7")
    result.assert_outcomes(passed=1, deselected=2)
    (line,) = verified(result)
    assert "select=['MOD104']" in line
    assert "('timeout', 7.0)" in line


def test_models_that_the_command_line_names(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_own(): pass")
    result = run(pytester, "--kit-verify", "net.py:Net", "--kit-verify=cnn", "-k", "MOD101 or own")
    assert result.parseoutcomes()["passed"] == 3
    assert len(verified(result)) == 2


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("modle: cnn\n", "*kit: *verify.yaml: unknown key 'modle'; did you mean 'model'?*"),
        ("num_classes: 10\n", "*kit: *names no model*"),
        ("model: cnn\nselect: [XYZ]\n", "*kit: no rule has a code that starts with 'XYZ'*"),
    ],
)
def test_a_broken_spec_is_one_sentence(pytester: pytest.Pytester, text: str, phrase: str) -> None:
    pytester.path.joinpath("verify.yaml").write_text(text)
    result = run(pytester, "--kit")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([phrase])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_the_fixture_verifies_once_for_the_same_arguments(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        def test_one(kit_verify):
            report = kit_verify("net.py:Net", num_classes=10, select=["MOD101"])
            report.assert_passed()
            assert report.exit_code == 0

        def test_again(kit_verify):
            kit_verify("net.py:Net", num_classes=10, select=["MOD101"]).assert_held("MOD101")

        def test_other_folder(kit_verify, tmp_path):
            kit_verify("net.py:Net", folder=tmp_path, device="cpu", timeout=9)

        def test_failing(kit_verify):
            kit_verify("net.py:Net", kwargs={"MOD104": "fail"}).assert_passed()
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=3, failed=1)
    first, second, _ = verified(result)
    assert f"('folder', {pytester.path!r}), ('timeout', 120.0)" in first
    assert "('device', 'cpu')" in second
    result.stdout.fnmatch_lines(["E*AssertionError: kit verify net.py:Net:", "E*FAIL  MOD104 sample-leak  net.py:7"])
    result.stdout.no_fnmatch_line("*def assert_passed*")


def test_the_real_verifier(pytester: pytest.Pytester) -> None:
    """A leak between samples, found through a file, in a process of its own."""
    pytester.makepyfile(net=NET)
    Path("verify.yaml").write_text("model: net.py:Net\ninput_size: [3, 16, 16]\nselect: [MOD101, MOD104, MOD105]\n")
    result = pytester.runpytest_subprocess(*LOADED, "--kit")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAIL  MOD104 sample-leak  net.py:*", "*fix: *"])
