"""The HTML renderer of a report: one file that shows everything and loads nothing."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from verify.render import LABEL, ORDER, duration, plain_verdict, table_text
from verify.report import Report, Status, Table, plural
from verify.rules import all_rules

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE = "report.html.jinja"
DOTS_PER_CSS_PIXEL = 150 / 96  # pictures are drawn with 150 dots an inch; a CSS inch has 96 pixels


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG image that becomes part of the page.

    Args:
        png: the bytes of the file, drawn with 150 dots an inch; shown in this size where there is room.
        alt: what it shows, for those who cannot see it.
        caption: what to look at, below the picture.
    """

    png: bytes
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The image as a `data:` address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in CSS pixels."""
        width, height = struct.unpack(">II", self.png[16:24])  # the header chunk comes first in every PNG
        return round(width / DOTS_PER_CSS_PIXEL), round(height / DOTS_PER_CSS_PIXEL)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Something that a page shows besides the report. All of it is plain text, which the page escapes.

    Args:
        title: the heading.
        paragraphs: shown first.
        facts: a table of names and values.
        pictures: one below the other.
        text: shown as it is, in a fixed-width font: commands, logs.
    """

    title: str
    paragraphs: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    text: str = ""


def render_html(report: Report, title: str, sections: Sequence[Section] = ()) -> str:
    """A page for a browser: the verdict, what is wrong, `sections`, what held, what was not checked.

    Args:
        report: what the verifier found out.
        title: the command, for the first line.
        sections: shown between the findings and the table of what held.

    Returns:
        A whole HTML document without scripts or references to other files; light or dark as the reader's system is.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    answer = plain_verdict(report)
    return environment.get_template(PAGE).render(
        report=report,
        title=title,
        sections=[*sections, *map(_section, report.tables)],
        verdict=answer[:1].upper() + answer[1:],
        tone=_tone(report),
        counts=_counts(report),
        findings=[check for status in ORDER for check in report.of(status)],
        labels=LABEL,
        held=report.of(Status.PASS),
        skipped=report.of(Status.SKIP),
        information=report.of(Status.NOTE),
        duration=duration(report.seconds),
        meaning={code: rule.title for code, rule in all_rules().items()},
    )


def _section(table: Table) -> Section:
    text = table_text(replace(table, title="", notes=[])).strip("\n")
    return Section(title=table.title, text=text, paragraphs=table.notes)


def _prose(text: str) -> Markup:
    """Escaped text in which what stands between `backticks` is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _tone(report: Report) -> Status:
    """What colours the verdict: the worst thing in the report."""
    for status in ORDER:
        if report.of(status):
            return status
    return Status.PASS if report.passed else Status.ERROR


def _counts(report: Report) -> str:
    """`20 checks held, 1 failed, 2 skipped`."""
    words = {Status.FAIL: "failed", Status.ERROR: "not carried out", Status.WARN: "warned", Status.SKIP: "skipped"}
    others = [f"{len(report.of(status))} {word}" for status, word in words.items() if report.of(status)]
    return ", ".join([f"{plural(len(report.of(Status.PASS, Status.NOTE)), 'check')} held", *others])
