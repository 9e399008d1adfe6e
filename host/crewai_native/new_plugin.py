"""Renders the template of an accelerator: the part of copier's conventions that it needs.

The template (``plugins/template``) is a copier template, so that those who have copier can use it and
update from it. copier itself is no dependency of ours, for what it brings along.
"""

from __future__ import annotations

import datetime as dt
import inspect
import keyword
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crewai_native import __version__, hookspecs
from crewai_native import slots as _slots
from crewai_native._discovery import OURS
from crewai_native._errors import ConfigurationError, CrewAINativeError
from crewai_native._types import CONTRACT

try:
    import jinja2
    import jinja2.ext
    import yaml
except ImportError as error:
    raise CrewAINativeError(
        f"rendering the template needs {error.name}: pip install 'crewai-native[new-plugin]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Mapping

_DISTRIBUTION: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_CREWAI: Final = frozenset({"crewai", "crewai-cli", "crewai-core", "crewai-files", "crewai-tools"})
# No crate can be named like a keyword, nor like one that is always there.
_RUST: Final = """
    abstract as async await become box break const continue crate do dyn else enum extern false final
    fn for gen if impl in let loop macro match mod move mut override priv pub ref return self static
    struct super trait true try type typeof unsafe unsized use virtual where while yield
    alloc core proc-macro std test
"""
# Slots for which the template has a provider of its own; for the others it has CrewAI's code.
_OWN: Final = frozenset({"tools.cache", "locks", "serialization.messages"})


class _Described(dict[str, dict[str, Any]]):
    """The host's slots by name, each with what a template says about it."""

    version = ".".join(__version__.split(".")[:2])
    contract = CONTRACT

    @property
    def year(self) -> int:
        return dt.datetime.now(tz=dt.UTC).year


class Slots(jinja2.ext.Extension):
    """Tells templates of the host's slots: the variable ``slots``; and filters that judge names."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        described = _Described({name: _describe(name) for name in _slots.SLOT_NAMES})
        environment.globals["slots"] = described
        environment.filters["is_distribution"] = lambda name: bool(_DISTRIBUTION.fullmatch(name))
        environment.filters["taken"] = _taken
        environment.filters["is_rust"] = _RUST.split().__contains__


def _taken(name: str) -> str:
    """Return what a distribution's name, or that of its package or classes, is already; or nothing."""
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or keyword.iskeyword(name.title()):
        return "a keyword of Python"
    if package in sys.stdlib_module_names:
        return "a module of Python itself"
    if name in _CREWAI:
        return "a distribution of CrewAI"
    if name in {*OURS, "crewai-native", "crewai-native-sdk"}:
        return "a distribution of crewai-native"
    return ""


def template() -> Path:
    """Return the folder of the template: beside this module, or in the repository."""
    installed = Path(__file__).with_name("template")
    return installed if installed.is_dir() else Path(__file__).parents[2] / "plugins" / "template"


def render(source: Path, target: Path, given: Mapping[str, str]) -> list[Path]:
    """Render a template into a new folder.

    Of copier's conventions this knows: ``_subdirectory``, ``_templates_suffix``,
    ``_jinja_extensions``; questions with ``default``, ``choices``, ``validator`` and ``when``; names
    of files and folders as templates, of which one that renders to nothing is left out.

    Args:
        source: The template, with its ``copier.yml``.
        target: The folder to make. There must be nothing in it.
        given: Answers to its questions.

    Returns:
        The files that were written.

    Raises:
        ConfigurationError: An answer means nothing, or the folder has something in it or cannot be made.
    """
    try:
        return _render(source, target, given)
    except OSError as error:
        place = error.filename or target
        raise ConfigurationError(f"{place} cannot be written: {error.strerror}") from error


def _render(source: Path, target: Path, given: Mapping[str, str]) -> list[Path]:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(f"{target} exists; new-plugin accepts a folder that does not")
    questions = yaml.safe_load((source / "copier.yml").read_text())
    environment = jinja2.Environment(  # noqa: S701 - no HTML: the files are programs
        loader=jinja2.FileSystemLoader(source),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        extensions=questions.get("_jinja_extensions", []),
    )
    answers = _answers(environment, questions, given)
    suffix = questions.get("_templates_suffix", ".jinja")
    root = source / questions.get("_subdirectory", ".")
    # All of it is rendered before any of it is written: a mistake leaves nothing half done.
    rendered = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        parts = path.relative_to(root).parts
        names = [*parts[:-1], parts[-1].removesuffix(suffix)]
        names = [environment.from_string(name).render(answers) for name in names]
        if not all(names):
            continue
        if path.name.endswith(suffix):
            text = environment.get_template(path.relative_to(source).as_posix()).render(answers)
            rendered[target.joinpath(*names)] = text.encode()
        else:
            rendered[target.joinpath(*names)] = path.read_bytes()
    for file, content in rendered.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return list(rendered)


def _answers(
    environment: jinja2.Environment, questions: Mapping[str, Any], given: Mapping[str, str]
) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for name, question in questions.items():
        if name.startswith("_"):
            continue
        asked = question.get("when", True) is not False
        if asked and name in given:
            answers[name] = given[name]
        else:
            answers[name] = environment.from_string(str(question["default"])).render(answers)
        if "choices" in question and answers[name] not in question["choices"]:
            accepted = ", ".join(question["choices"])
            raise ConfigurationError(f"{name} is {answers[name]!r}; it accepts {accepted}")
        if "validator" in question:
            problem = environment.from_string(question["validator"]).render(answers)
            if problem:
                raise ConfigurationError(problem)
    return answers


def _describe(name: str) -> dict[str, Any]:
    slot = _slots.load(name)
    hook = getattr(hookspecs, slot.hook)
    parameters = inspect.signature(hook).parameters
    module = f"crewai_native.testing.contract.test_{name.replace('.', '_')}"
    return {
        "summary": slot.summary,
        "hook": slot.hook,
        "parameters": list(parameters),
        "signature": ", ".join(
            str(parameter).replace("'", "") for parameter in parameters.values()
        ),
        "doc": (inspect.getdoc(hook) or "").splitlines()[0],
        "own": name in _OWN,
        "variable": f"SLOT_{name.replace('.', '_').upper()}",
        "contract_module": module,
        "contract_class": "Test" + name.replace(".", " ").title().replace(" ", ""),
    }
