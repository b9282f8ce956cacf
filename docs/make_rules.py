"""Write docs/rules.md from the docstrings of the rules; `--print` writes to the standard output instead."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from verify.rules import FAMILIES, Rule, all_rules

HEAD = """# Rules

Generated from the rules' own docstrings by `make docs`; `kit explain CODE` prints the same page. A `fail` makes
`kit verify` exit with 1, a `warn` does not. Codes are an interface: they are never reused for something else.
"""
PAGE = Path(__file__).with_name("rules.md")


def table(rules: list[Rule]) -> str:
    """A Markdown table of the rules."""
    rows = [f"| [{r.code}](#{r.code.lower()}) | {r.name} | {r.severity} | {r.title} |" for r in rules]
    return "\n".join(["| code | name | severity | what it says |", "|---|---|---|---|", *rows])


def page(rule: Rule) -> str:
    """A Markdown section on one rule: each part of its docstring becomes a paragraph."""
    text = re.sub(
        r"^(Why it matters|Found by|Not an error|Wrong|Right|References):", r"\n**\1:**", rule.page, flags=re.M
    )
    return f'<a id="{rule.code.lower()}"></a>\n\n### {rule.code} {rule.name}\n\n{rule.title}.\n{text}'


def document() -> str:
    """The whole of docs/rules.md."""
    rules = list(all_rules().values())
    families = [
        f"## {family}: {what}\n\n" + "\n\n".join(page(rule) for rule in rules if rule.code.startswith(family))
        for family, what in FAMILIES.items()
    ]
    text = "\n".join([HEAD, table(rules), "", "\n\n".join(families), ""])
    return re.sub(r"\n{3,}", "\n\n", text)


if __name__ == "__main__":
    if "--print" in sys.argv:
        sys.stdout.write(document())
    else:
        PAGE.write_text(document())
