"""The documentation as a test reads it: pages, their headings, links and fenced blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + list((ROOT / "docs").rglob("*.md"))
)

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: the words of its info string, e.g. ``bash run slow``, and its text."""

    info: tuple[str, ...]
    text: str


def name(page: Path) -> str:
    """How a page is called in messages and ids of tests."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of a page in one language."""
    found = [Block(tuple(info.split()), text) for info, text in _FENCE.findall(page.read_text())]
    return [block for block in found if block.info[:1] == (language,)]


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """The targets of a page's links."""
    return _LINK.findall(_prose(page))


def inline_code(page: Path) -> list[str]:
    """What stands between backticks outside of fenced blocks."""
    return _CODE.findall(_prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in texts}
