"""The demo's text, cut into paragraphs that know where they stand."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
from typing import Final

_PART: Final = re.compile(r"(Article|Amendment) ([IVX]+)")
_SECTION: Final = re.compile(r"Section (\d+)")
# Titles, and the dates of passage above each amendment, are no part of the law.
_NOT_LAW: Final = re.compile(
    r"The Constitution of the United States of America|Preamble|Amendments"
    r"|(The Ten Original Amendments|Passed by Congress).*"
)
_NUMERALS: Final = {"I": 1, "V": 5, "X": 10}
_BILL_OF_RIGHTS: Final = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Paragraph:
    """One paragraph of the Constitution.

    Attributes:
        heading: Where it stands, such as ``Article I, Section 8``.
        scope: The same as a path of a memory's scopes: ``/constitution/article-01/section-08``.
        categories: Kinds of law that the place tells: ``original`` or ``amendment``, and
            ``bill-of-rights`` for the first ten of the latter.
        text: The paragraph on one line.
    """

    heading: str
    scope: str
    categories: tuple[str, ...]
    text: str


@functools.cache
def paragraphs() -> tuple[Paragraph, ...]:
    """Return the text's paragraphs in their order."""
    source = importlib.resources.files(__package__).joinpath("constitution.txt")
    found: list[Paragraph] = []
    heading, scope = "Preamble", "/constitution/preamble"
    categories: tuple[str, ...] = ("original",)
    part, part_scope = heading, scope
    for block in re.split(r"\n\s*\n", source.read_text(encoding="utf-8")):
        text = " ".join(block.split())
        if match := _PART.fullmatch(text):
            kind, numeral = match[1], match[2]
            number = _number(numeral)
            part, part_scope = text, f"/constitution/{kind.lower()}-{number:02}"
            heading, scope = part, part_scope
            if kind == "Article":
                categories = ("original",)
            elif number <= _BILL_OF_RIGHTS:
                categories = ("amendment", "bill-of-rights")
            else:
                categories = ("amendment",)
        elif match := _SECTION.fullmatch(text):
            heading, scope = f"{part}, {text}", f"{part_scope}/section-{int(match[1]):02}"
        elif text and not _NOT_LAW.fullmatch(text):
            found.append(Paragraph(heading, scope, categories, text))
    return tuple(found)


def _number(numeral: str) -> int:
    """Return the value of a Roman numeral."""
    values = [_NUMERALS[letter] for letter in numeral]
    return sum(
        -value if value < following else value
        for value, following in zip(values, [*values[1:], 0], strict=True)
    )
