"""Writes docs/slots.md, the reference of every slot, from the slots' own modules.

    python scripts/slots_reference.py

A test holds the file to what this makes of the code.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crewai_native import hookspecs, slots

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = Path(__file__).parents[1] / "docs" / "slots.md"

_HEAD: Final = """\
# The slots

<!-- Written by scripts/slots_reference.py from the code. Change the code, then run it. -->

A slot is one place in CrewAI that can be served by an accelerator. A plug-in names the slots that
it serves in its entry points and implements each one's hook; [Publish an accelerator](publish-an-accelerator.md)
shows how. *Official* targets are CrewAI's own extension points: there name and parameters must be
as they were. *Wrapped* targets are methods that the slot stands in for: there the code itself must
be one that the tests have run against, else the slot stays stock and says `target-changed`. So it does
where other code has wrapped the method already, unless what the slot puts there calls the wrapper.
"""

_ROLE: Final = re.compile(r":\w+:`~?(?:[\w.]+\.)?([\w.]+)`")
_LITERAL: Final = re.compile(r"``(.+?)``", re.DOTALL)
_SECTION: Final = re.compile(r"(Args|Attributes|Returns|Raises|Yields):")


def render() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *(part for name in slots.SLOT_NAMES for part in _slot(name))])


def _slot(name: str) -> Iterator[str]:
    slot = slots.load(name)
    module = importlib.import_module(type(slot).__module__)
    hook = getattr(hookspecs, slot.hook)
    yield f"## {name}\n"
    yield f"{_prose(type(slot).__doc__)}\n"
    yield f"- **Bound by**: {slot.how}"
    yield f"- **Keeps data**: {'yes, so it never falls back to stock once it has written' if slot.keeps_data else 'no'}"
    yield f"- **Providers at a time**: {'several, chosen by name' if slot.shared else 'one'}"
    if methods := _foreign_methods(module):
        yield f"- **Methods**: {methods}"
    yield ""
    yield f"```python\n{_signature(slot.hook, hook)}\n```\n"
    yield f"{_prose(hook.__doc__)}\n"
    yield "| target | kind |\n|---|---|"
    for target in slot.targets:
        yield f"| `{target.path}` | {'wrapped' if target.wrapped else 'official'} |"
    yield ""
    if slot.repairs:
        yield "Mended around it, each while the provider has the feature and CrewAI's code is known:\n"
        for repair in slot.repairs:
            yield f"- `{repair.name}` (feature `{repair.feature}`): without it, {repair.summary}."
        yield ""
    for cls in _described(module):
        yield from _class(cls)


def _foreign_methods(module: Any) -> str:
    """Name the methods of a protocol that is CrewAI's own class, and so not described below."""
    protocol = getattr(module, "PROTOCOL", ())
    if any(getattr(cls, "_is_protocol", False) for cls in _described(module)):
        return ""
    return ", ".join(f"`{name}`" for name in protocol)


def _described(module: Any) -> Iterator[type]:
    """Yield the public classes of a slot's module that a provider deals with: not the slot's."""
    for name, value in vars(module).items():
        if (
            inspect.isclass(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
            and (
                getattr(value, "_is_protocol", False)
                or dataclasses.is_dataclass(value)
                or issubclass(value, tuple)
                or issubclass(value, enum.Enum)
            )
        ):
            yield value


def _class(cls: type) -> Iterator[str]:
    yield f"### {cls.__name__}\n"
    yield f"{_prose(cls.__doc__)}\n"
    if issubclass(cls, enum.Enum):
        yield f"One of {', '.join(f'`{member.value}`' for member in cls)}.\n"
    for name, member in vars(cls).items():
        if isinstance(member, property):
            yield f"- `{name}`: {_prose(member.__doc__)}\n"
        if inspect.isfunction(member) and not name.startswith("_"):
            yield f"```python\n{_signature(name, member)}\n```\n"
            yield f"{_prose(member.__doc__)}\n"


def _signature(name: str, function: Any) -> str:
    # The annotations are text, thanks to `from __future__ import annotations`: no quotes around it.
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
    prefix = "async def" if inspect.iscoroutinefunction(function) else "def"
    return f"{prefix} {name}{text}"


def _prose(docstring: str | None) -> str:
    """Return a Google-style docstring as Markdown."""
    parts = []
    for block in inspect.cleandoc(docstring or "").split("\n\n"):
        heading, _, body = block.partition("\n")
        if _SECTION.fullmatch(heading):
            parts.append(f"**{heading}**\n\n{_list(body)}")
        else:
            parts.append(" ".join(block.split()))
    text = _ROLE.sub(r"`\1`", "\n\n".join(parts))
    return _LITERAL.sub(lambda found: f"`{' '.join(found[1].split())}`", text)


def _list(body: str) -> str:
    entries: list[str] = []
    for line in textwrap.dedent(body).splitlines():
        if line.startswith(" "):
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line)
    named = (entry.partition(": ") for entry in entries)
    return "\n".join(f"- `{name}`: {text}" if text else f"- {name}" for name, _, text in named)


if __name__ == "__main__":
    PAGE.write_text(render())
