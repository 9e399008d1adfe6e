"""CrewAI's ``agents.yaml`` and ``tasks.yaml``, read with the line of everything.

Composed, not loaded: a loaded mapping has neither lines nor the keys that were written twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from os import PathLike

_MERGE: Final = "tag:yaml.org,2002:merge"


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


def read(path: str | PathLike[str], needs: Iterable[str], problems: list[Problem]) -> list[Entry]:
    """Return the entries of a file; what is wrong with it is added to ``problems``.

    An entry that others merge (``<<``) and that lacks one of the fields in ``needs`` is there for
    these others, and is left out.
    """
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
    return list(_Reader(file, problems).entries(root, frozenset(needs)))


class _Reader:
    """Makes entries of the nodes of one file."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems

    def entries(self, root: yaml.MappingNode, needs: frozenset[str]) -> Iterator[Entry]:
        # All before the first merge, which puts keys beside those that are written there.
        self._check_keys(root, "name")
        for name, node in root.value:
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node, f"field of {name.value!r}")
        merged = set(_merged(root))
        for name, (key, node) in self._items(root).items():
            if not isinstance(node, yaml.MappingNode):
                self._add(node.start_mark, f"{name!r} is no mapping of fields")
                continue
            items = self._items(node)
            if id(node) in merged and not needs <= items.keys():
                continue
            fields = {
                field: Field(self._value(value, f"{field} of {name!r}"), _line(value))
                for field, (_, value) in items.items()
            }
            # A block mapping begins on the line after its name.
            yield Entry(name, self._file, _line(key), fields)

    def _check_keys(self, node: yaml.MappingNode, what: str) -> None:
        """Leave the keys of a mapping that are texts, each once."""
        seen: dict[str, int] = {}
        kept = []
        for key, value in node.value:
            name = key.value
            if not isinstance(key, yaml.ScalarNode):
                self._add(key.start_mark, f"{what} is no text")
            elif name in seen and key.tag != _MERGE:
                message = f"{what} {name!r} is there twice, first on line {seen[name]}"
                self._add(key.start_mark, message)
            else:
                seen[name] = _line(key)
                kept.append((key, value))
        node.value = kept

    def _items(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the items of a mapping, with what it merges."""
        with _loader() as loader:
            try:
                loader.flatten_mapping(node)
            except yaml.MarkedYAMLError as error:
                self._add(error.problem_mark or node.start_mark, error.problem)
        # What is merged comes first, and gives way.
        return {str(key.value): (key, value) for key, value in node.value}

    def _value(self, node: yaml.Node, what: str) -> Any:
        """Return a value; one that cannot be read as it is written."""
        with _loader() as loader:
            try:
                return loader.construct_document(node)
            except yaml.MarkedYAMLError as error:
                mark, reason = error.problem_mark or node.start_mark, error.problem
            except Exception as error:  # noqa: BLE001 - what Python makes of a date or a number
                mark, reason = node.start_mark, str(error)
        self._add(mark, f"{what} cannot be read: {reason}")
        return node.value if isinstance(node, yaml.ScalarNode) else None

    def _add(self, mark: yaml.Mark, message: str | None) -> None:
        self._problems.append(Problem(self._file, mark.line + 1, message or "no YAML"))


def _merged(root: yaml.MappingNode) -> Iterator[int]:
    """Yield what tells apart the nodes that are merged into others."""
    for node in (root, *(value for _, value in root.value)):
        if not isinstance(node, yaml.MappingNode):
            continue
        for key, value in node.value:
            if key.tag == _MERGE:
                yield id(value)
                yield from map(id, value.value if isinstance(value, yaml.SequenceNode) else ())


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


@contextlib.contextmanager
def _loader() -> Iterator[yaml.SafeLoader]:
    loader = yaml.SafeLoader("")
    try:
        yield loader
    finally:
        loader.dispose()
