"""The HTML report: complete, self-contained, and safe whatever a model's name or message holds."""

from __future__ import annotations

import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from verify.html import Picture, Section, render_html
from verify.report import Check, Report, Status

NASTY = "<script>alert('x')</script> & \"quotes\""


def png(width: int, height: int) -> bytes:
    """A grey picture of `width` x `height`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\x80" * width for _ in range(height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Page(HTMLParser):
    """The text, tags and attributes of a page; complains about tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def report() -> Report:
    return Report(
        target="net.py:Net",
        device="cpu",
        torch="2.14.1",
        seconds=3.25,
        notes=["the input size was found by trial"],
        checks=[
            Check(code="MOD103", name="parameter-count", status=Status.PASS, measured="1,485", expected="1,485"),
            Check(code="MOD105", name="eval-not-deterministic", status=Status.PASS),
            Check(
                code="GRD301",
                name="gradient-missing",
                status=Status.FAIL,
                measured="4 of 10 tensors",
                expected="none",
                message="the loss does not reach them",
                hint="look for `.detach()`",
                location="net.py:41",
            ),
            Check(code="MOD107", name="layer-not-registered", status=Status.ERROR, message="it died of SIGSEGV"),
            Check(code="TRN401", name="initial-loss", status=Status.WARN, measured="9.1", expected="2.3"),
            Check(code="TRN402", name="overfit-small-batch", status=Status.SKIP, message="not finite (GRD302)"),
            Check(code="XYZ999", name="from-a-newer-kit", status=Status.PASS),
        ],
    )


def test_every_check_and_every_word_of_it_is_shown(report: Report) -> None:
    text = Page(render_html(report, "kit verify")).text
    for check in report.checks:
        for part in (check.code, check.name, check.measured, check.expected, check.message, check.location):
            assert part in text
    assert "look for .detach()" in text
    for fact in ("kit verify", "net.py:Net", "2.14.1", "3.2 s", "cpu", "the input size was found by trial"):
        assert fact in text


def test_the_verdict_comes_first_then_problems_by_severity_then_the_rest(report: Report) -> None:
    text = Page(render_html(report, "kit verify")).text
    body = text[text.index("kit verify", text.index("kit verify") + 1) :]  # after <title>
    order = ["1 error", "GRD301", "MOD107", "TRN401", "What held", "MOD103", "What was not checked", "TRN402", "Notes"]
    places = [body.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("statuses", "verdict", "tone"),
    [
        ([Status.PASS, Status.SKIP], "Passed", "pass"),
        ([Status.PASS, Status.WARN], "Passed, 1 warning", "warn"),
        ([Status.PASS, Status.FAIL, Status.FAIL], "2 errors", "fail"),
        ([Status.PASS, Status.ERROR], "1 check could not be carried out", "error"),
        ([Status.SKIP], "Nothing was checked", "error"),
    ],
)
def test_verdict(statuses: list[Status], verdict: str, tone: str) -> None:
    checks = [Check(code="MOD101", name="model-builds", status=status) for status in statuses]
    page = Page(render_html(Report(target="cnn", checks=checks), "kit verify"))
    assert verdict in page.text
    assert [header["class"] for header in page.attributes("header")] == [tone]


def test_parts_without_content_are_left_out() -> None:
    checks = [Check(code="MOD101", name="model-builds", status=Status.PASS)]
    text = Page(render_html(Report(target="cnn", checks=checks), "kit verify")).text
    assert "What held" in text
    for heading in ("Findings", "What was not checked", "Notes"):
        assert heading not in text


def test_nothing_is_loaded_and_nothing_runs(report: Report) -> None:
    page = Page(render_html(report, "kit verify", [Section(title="A", pictures=[Picture(png=png(3, 2), alt="grey")])]))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not {"href", "srcset", "style", "onload", "onclick", "onerror"} & set(attributes), tag
        assert (attributes.get("src") or "data:").startswith("data:")
    source = render_html(report, "kit verify")
    assert "url(" not in source
    assert "@import" not in source
    assert "http:" not in source
    assert "https:" not in source


def test_everything_is_escaped(report: Report) -> None:
    nasty = Check(
        code="MOD104",
        name=NASTY,
        status=Status.FAIL,
        measured=NASTY,
        expected=NASTY,
        message=NASTY,
        hint=f"`{NASTY}`",
        location=NASTY,
    )
    skipped = Check(code="MOD104", name=NASTY, status=Status.SKIP, message=NASTY)
    held = Check(code="MOD104", name=NASTY, status=Status.PASS, measured=NASTY, expected=NASTY)
    section = Section(
        title=NASTY,
        paragraphs=[NASTY],
        facts={NASTY: NASTY},
        text=NASTY,
        pictures=[Picture(png=png(1, 1), alt=NASTY, caption=NASTY)],
    )
    report = Report(target=NASTY, device=NASTY, torch=NASTY, checks=[nasty, skipped, held], notes=[NASTY])
    page = Page(render_html(report, NASTY, [section]))
    assert "script" not in {tag for tag, _ in page.tags}
    # The command twice, 6 of the finding, 2 of the skipped and 3 of the held check, 1 note, 3 facts of the environment,
    # and 6 of the section, whose text alternative is an attribute.
    assert page.text.count(NASTY) == 2 + 6 + 2 + 3 + 1 + 3 + 6
    assert [image["alt"] for image in page.attributes("img")] == [NASTY]


def test_backticks_become_code_and_unpaired_ones_stay() -> None:
    checks = [Check(code="A1", name="a", status=Status.FAIL, message="call `eval()` first", hint="a lone ` stays")]
    source = render_html(Report(target="cnn", checks=checks), "kit verify")
    assert "call <code>eval()</code> first" in source
    assert "a lone ` stays" in source


def test_sections_come_after_the_findings_in_order_with_their_parts(report: Report) -> None:
    first = Section(
        title="Result",
        paragraphs=["It learned."],
        facts={"Test accuracy": "98.05%"},
        text="python train.py",
        pictures=[Picture(png=png(300, 150), alt="a curve", caption="Loss.")],
    )
    page = Page(render_html(report, "kit demo", [first, Section(title="Configuration")]))
    parts = [
        "Findings",
        "Result",
        "It learned.",
        "Test accuracy",
        "98.05%",
        "Loss.",
        "python train.py",
        "Configuration",
    ]
    places = [page.text.index(part) for part in [*parts, "What held"]]
    assert places == sorted(places)
    (image,) = page.attributes("img")
    assert image["alt"] == "a curve"
    assert (image["width"], image["height"]) == (
        "192",
        "96",
    )  # 300 x 150 dots, at 150 an inch and 96 CSS pixels an inch


def test_the_page_is_readable_in_the_dark_and_on_a_phone(report: Report) -> None:
    source = render_html(report, "kit verify")
    assert "@media (prefers-color-scheme: dark)" in source
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in Page(source).attributes("meta")
    assert Page(source).attributes("html") == [{"lang": "en"}]


def test_the_template_lies_in_the_package_where_a_wheel_takes_it_from() -> None:
    import verify

    assert (Path(verify.__file__).parent / "report.html.jinja").is_file()


def test_a_note_stands_at_the_end_and_counts_as_held() -> None:
    note = Check(
        code="OPT707", name="decay-on-bias", status=Status.NOTE, message="biases shrink", location="train.py:9"
    )
    held = Check(code="MOD101", name="model-builds", status=Status.PASS)
    source = render_html(Report(target="cnn", checks=[note, held]), "kit verify")
    page = Page(source)
    assert "Passed" in page.text
    assert "2 checks held." in page.text
    assert "Findings" not in page.text
    places = [page.text.index(part) for part in ("What held", "Notes", "OPT707 decay-on-bias", "train.py:9", "biases")]
    assert places == sorted(places)
