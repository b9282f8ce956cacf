"""SARIF: the parts that code scanning insists on, and fingerprints that outlive an edit further up in the file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from verify.report import Check, Report, Status
from verify.rules import all_rules
from verify.sarif import render_sarif

LEAK = Check(
    code="MOD104",
    name="sample-leak",
    status=Status.FAIL,
    measured="logits move by 6.5%",
    expected="0",
    message="2 of 8 logits change with the other samples",
    hint="normalise over channels",
    location="my models/net.py:41 Net.forward",
)


@pytest.fixture(autouse=True)
def _outside_of_a_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)


@pytest.fixture
def report() -> Report:
    return Report(
        target="models/net.py:Net",
        torch="2.14.1",
        seconds=3.25,
        notes=["the input size was found by trial"],
        checks=[
            Check(code="MOD101", name="model-builds", status=Status.PASS, measured="Net"),
            LEAK,
            Check(
                code="GRD303", name="parameter-frozen", status=Status.WARN, message="frozen", location="stem.0.weight"
            ),
            Check(code="OPT707", name="decay-on-norm", status=Status.NOTE, message="biases too", location="train.py:9"),
            Check(code="MOD107", name="layer-not-registered", status=Status.ERROR, message="it died of SIGSEGV"),
            Check(code="TRN402", name="overfit-small-batch", status=Status.SKIP, message="not finite (GRD302)"),
            Check(code="XYZ999", name="from-a-newer-kit", status=Status.FAIL),
        ],
    )


def run_of(report: Report) -> dict[str, Any]:
    log = json.loads(render_sarif(report))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    return run


def test_findings_are_results_and_nothing_else_is(report: Report) -> None:
    results = run_of(report)["results"]
    assert [(result["ruleId"], result["level"]) for result in results] == [
        ("MOD104", "error"),
        ("GRD303", "warning"),
        ("OPT707", "note"),
        ("XYZ999", "error"),
    ]
    assert all(result["message"]["text"] for result in results)
    first = results[0]["message"]["text"]
    for words in ("2 of 8 logits", "measured logits move by 6.5%", "expected 0", "fix: normalise over channels"):
        assert words in first


def test_every_result_points_at_its_rule_and_at_a_file(report: Report) -> None:
    run = run_of(report)
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules) == 7
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["region"]["startLine"] >= 1
    places = {result["ruleId"]: result["locations"][0] for result in run["results"]}
    assert places["MOD104"]["physicalLocation"] == {
        "artifactLocation": {"uri": "my%20models/net.py"},
        "region": {"startLine": 41},
    }
    # A parameter is no place in a file: the file that was checked stands for it.
    assert places["GRD303"]["physicalLocation"]["artifactLocation"]["uri"] == "models/net.py"
    assert places["GRD303"]["logicalLocations"] == [{"fullyQualifiedName": "stem.0.weight"}]


def test_rules_carry_their_page(report: Report) -> None:
    rules = {rule["id"]: rule for rule in run_of(report)["tool"]["driver"]["rules"]}
    rule = all_rules()["MOD104"]
    leak = rules["MOD104"]
    assert leak["name"] == "sample-leak"
    assert leak["shortDescription"]["text"] == rule.title
    assert "serving one image gives another answer" in leak["fullDescription"]["text"]
    assert "\n" not in leak["fullDescription"]["text"]
    assert "Found by" not in leak["fullDescription"]["text"]
    assert leak["help"]["text"] == rule.page
    assert "**Why it matters:**" in leak["help"]["markdown"]
    assert leak["defaultConfiguration"] == {"level": "error"}
    assert rules["XYZ999"] == {"id": "XYZ999", "name": "from-a-newer-kit"}


def test_what_could_not_be_carried_out_is_a_notification(report: Report) -> None:
    run = run_of(report)
    (invocation,) = run["invocations"]
    assert (invocation["exitCode"], invocation["executionSuccessful"]) == (1, False)
    error, note = invocation["toolExecutionNotifications"]
    assert (error["level"], error["message"]["text"]) == ("error", "it died of SIGSEGV")
    assert run["tool"]["driver"]["rules"][error["associatedRule"]["index"]]["id"] == "MOD107"
    assert (note["level"], note["message"]["text"]) == ("note", "the input size was found by trial")


@pytest.mark.parametrize(
    ("statuses", "code", "successful"),
    [
        ([Status.PASS], 0, True),
        ([Status.PASS, Status.NOTE, Status.WARN], 0, True),
        ([Status.PASS, Status.FAIL], 1, True),
        ([Status.PASS, Status.ERROR], 2, False),
        ([], 2, False),
    ],
)
def test_how_the_verifier_ended(statuses: list[Status], code: int, successful: bool) -> None:
    checks = [Check(code="MOD101", name="model-builds", status=status) for status in statuses]
    (invocation,) = run_of(Report(target="cnn", checks=checks))["invocations"]
    assert (invocation["exitCode"], invocation["executionSuccessful"]) == (code, successful)


def fingerprints(*checks: Check) -> list[str]:
    results = run_of(Report(target="t.py", checks=list(checks)))["results"]
    return [json.dumps(result["partialFingerprints"]) for result in results]


def test_a_fingerprint_outlives_moved_lines_and_other_numbers() -> None:
    moved = replace(LEAK, location="my models/net.py:57 Net.forward", measured="logits move by 7%")
    counted = replace(LEAK, message="3 of 8 logits change with the other samples")
    assert fingerprints(LEAK) == fingerprints(moved) == fingerprints(counted)


def test_different_findings_have_different_fingerprints() -> None:
    others = [
        replace(LEAK, code="MOD105"),
        replace(LEAK, location="other.py:41"),
        replace(LEAK, message="the logits are random"),
        replace(LEAK, location="stem"),
        LEAK,
        LEAK,
    ]
    assert len(set(fingerprints(*others))) == len(others)


@pytest.mark.parametrize(
    ("location", "uri"),
    [
        ("train.py:1", "train.py"),
        ("./src/train.py:1", "src/train.py"),
        ("/abs/tr ain/x.py:1", "file:///abs/tr%20ain/x.py"),
        ("naïve.py:1", "na%C3%AFve.py"),
    ],
)
def test_addresses(location: str, uri: str) -> None:
    (result,) = run_of(Report(target="t.py", checks=[replace(LEAK, location=location)]))["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri


def test_a_target_without_a_file_has_only_a_logical_place() -> None:
    check = replace(LEAK, location="stem.0")
    (result,) = run_of(Report(target="torchvision:resnet18", checks=[check]))["results"]
    assert result["locations"] == [{"logicalLocations": [{"fullyQualifiedName": "stem.0"}]}]
