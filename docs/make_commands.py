"""Write docs/commands.md: every slash command, what it proves, and the prompt that it grew from.

python docs/make_commands.py [--check]

`--check` writes nothing and exits with 1 if the page is not what the commands say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ROOT / "templates" / "pytorch_project" / "template" / ".claude" / "commands"
PAGE = ROOT / "docs" / "commands.md"
PROMPTS = ROOT / "tests" / "claude" / "prompts.yaml"
GROUPS = {
    "cnn": "A CNN for CIFAR-10",
    "resnet": "A ResNet from scratch",
    "vit": "A Vision Transformer from its paper",
    "debug": "A training that goes wrong",
    "data": "A data pipeline",
    "experiments": "Managing experiments",
    "deploy": "From a checkpoint to a service",
    "quick": "Quick tasks",
}
DOCUMENTS = {"workflows": "The guide to workflows", "cnn": "The example of a CNN"}
HEAD = """# Slash commands

Written by `python docs/make_commands.py` from the commands themselves.

Every step of every workflow is a command. Each starts from facts that `kit facts` collects before Claude reads the first word, says what to build with its numbers
and shapes, names the check that has to exit with 0, and ends in a report of at most ten lines. `/cnn`, `/resnet`, `/vit`, `/data-pipeline`, `/experiments` and
`/deploy` go through their steps in order with a gate after each; `/debug-training` picks the right diagnosis.

A command tells Claude what to do and what counts as proof. It cannot make a model follow it; the exit codes are what you can rely on.

A project made by `kit new` has `/train`, `/evaluate`, the general commands and those of its own model. They need `kit` on the path: start Claude Code from a
shell in which the environment is active.
"""


def front_of(text: str) -> dict:
    """The frontmatter of a command."""
    return yaml.safe_load(text.split("---\n")[1])


def checks_of(text: str) -> str:
    """The checks that a command names: the lines of its code blocks that start one, shortened."""
    found = []
    for line in re.findall(r"^ {4,}((?:kit (?:verify|watch)|python -m pytest|make ci).*)$", text, re.MULTILINE):
        line = re.sub(r" --(?:kwargs|input-size) \S+", "", line.rstrip("\\ "))
        if line not in found:
            found.append(line)
    if not found and "`kit verify`" in text:
        found = ["kit verify"]
    return "<br>".join(f"`{line}`" for line in found)


def group_of(name: str) -> str:
    """The heading under which a command belongs."""
    return GROUPS.get(name.split("-")[0], "Any project")


def page() -> str:
    """The whole page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(COMMANDS.glob("*.md"))}
    yield HEAD
    for heading in ("Any project", *GROUPS.values()):
        yield f"## {heading}\n\n| command | arguments | what for | proof |\n|---|---|---|---|"
        for name, text in texts.items():
            if group_of(name) == heading:
                front = front_of(text)
                hint = front.get("argument-hint", "").replace("|", "\\|")
                yield f"| `/{name}` | {f'`{hint}`' if hint else ''} | {front['description']} | {checks_of(text)} |"
        yield ""
    yield "## From prompt to command to check\n\nEvery prompt of the two documents that the kit grew from, and every command.\n"
    prompts = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    for document, title in DOCUMENTS.items():
        yield f"### {title}\n\n| prompt | command | check |\n|---|---|---|"
        for prompt in prompts[document]:
            yield f"| {prompt['where']} | `/{prompt['command']}` | {checks_of(texts[prompt['command']])} |"
        yield ""
    named = {prompt["command"] for document in prompts.values() for prompt in document}
    yield "### Added by the kit\n\n| prompt | command | check |\n|---|---|---|"
    for name, text in texts.items():
        if name not in named:
            yield f"| - | `/{name}` | {checks_of(text)} |"


def main() -> int:
    """Write the page, or compare it; the exit code."""
    if "--check" in sys.argv:
        return int(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
