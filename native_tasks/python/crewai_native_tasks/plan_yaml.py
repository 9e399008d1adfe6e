"""CrewAI's ``agents.yaml`` and ``tasks.yaml``, read with the line of everything.

Composed, not loaded: a loaded mapping has neither lines nor the keys that were written twice.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that is wrong with a plan.

    Attributes:
        file: The file that it is in; empty for a plan made in code.
        line: The line, from 1; 0 where there is none.
        message: What is wrong, and what would be accepted.
    """

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        """Return it as ``file:line: message``."""
        place = ":".join([self.file, *([str(self.line)] if self.line else [])])
        return f"{place}: {self.message}" if self.file else self.message


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A value and where it is written."""

    value: Any
    line: int


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An agent or a task as it is written."""

    name: str
    file: str
    line: int
    fields: dict[str, Field]

    def text(self, field: str) -> str:
        """Return a field's text; empty where there is none."""
        found = self.fields.get(field)
        return found.value.strip() if found and isinstance(found.value, str) else ""

    def line_of(self, field: str) -> int:
        """Return the line of a field, or of the entry that lacks it."""
        return self.fields[field].line if field in self.fields else self.line


def read(path: str | PathLike[str], problems: list[Problem]) -> list[Entry]:
    """Return the entries of a file; what is wrong with it is added to ``problems``."""
    file = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(file, 0, f"cannot be read ({error})"))
        return []
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.append(Problem(file, mark.line + 1 if mark else 0, f"no YAML: {error.problem}"))
        return []
    except yaml.YAMLError as error:
        problems.append(Problem(file, 0, f"no YAML: {error}"))
        return []
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        problems.append(Problem(file, 1, "is no mapping of names to their fields"))
        return []
    entries = []
    for name, node in _items(root, file, "name", problems):
        line = node.start_mark.line + 1
        if isinstance(node.value, str) or not isinstance(node, yaml.MappingNode):
            problems.append(Problem(file, line, f"{name!r} is no mapping of fields"))
            continue
        fields = {
            field: Field(_value(value), value.start_mark.line + 1)
            for field, value in _items(node, file, f"field of {name!r}", problems)
        }
        # A block mapping begins on the line after its name.
        entries.append(Entry(name, file, _key_line(root, name), fields))
    return entries


def _items(
    node: yaml.MappingNode, file: str, what: str, problems: list[Problem]
) -> Iterator[tuple[str, Any]]:
    """Yield the items of a mapping, each key once."""
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        name = str(key.value)
        if name in seen:
            message = f"{what} {name!r} is there twice, first on line {seen[name]}"
            problems.append(Problem(file, line, message))
            continue
        seen[name] = line
        yield name, value


def _key_line(node: yaml.MappingNode, name: str) -> int:
    return next(int(key.start_mark.line) + 1 for key, _ in node.value if str(key.value) == name)


def _value(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()
