"""Settings and where they come from: code over environment over pyproject.toml over defaults.

Every setting is checked when it is read. One that means nothing is a :class:`ConfigurationError`
that names it and what it accepts: a mistyped switch that silently does nothing is how people
believe that they run accelerated, or isolated, when they do not.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from crewai_native._errors import ConfigurationError
from crewai_native._types import COMPONENTS, STOCK
from crewai_native.slots import SLOT_NAMES

_TRUE: Final = frozenset({"1", "true", "on", "yes"})
_FALSE: Final = frozenset({"0", "false", "off", "no"})
TRUST_LEVELS: Final = ("all", "listed", "locked")
LOCK_FILE: Final = "crewai-native.lock"
_MENTIONED: Final = re.compile(rb"crewai[-_.]native", re.IGNORECASE)

_logger = logging.getLogger("crewai_native")
_HERE: Final = Path()
_EMPTY: Final[Mapping[str, Any]] = types.MappingProxyType({})

# The component that the switch of a slot belongs to, by the slot's area.
_AREA_COMPONENT: Final = {
    "memory": "memory",
    "knowledge": "memory",
    "tools": "tools",
    "tasks": "tasks",
    "flow": "db",
    "checkpoint": "db",
    "replay": "db",
    "locks": "db",
    "serialization": "serialization",
}

_PLAIN_VARIABLES: Final = {
    "CREWAI_NATIVE": "enabled",
    "CREWAI_NATIVE_PLUGINS": "plugins",
    "CREWAI_NATIVE_DENY": "deny",
    "CREWAI_NATIVE_TRUST": "trust",
    "CREWAI_NATIVE_LOCK": "lock",
    "CREWAI_NATIVE_STRICT": "strict",
    "CREWAI_NATIVE_VERIFY": "verify",
    "CREWAI_NATIVE_PROBE_TIMEOUT": "probe_timeout",
    "CREWAI_NATIVE_CACHE_DIR": "cache_dir",
    "CREWAI_NATIVE_METRICS": "metrics",
}
_TABLE_KEYS: Final = (*_PLAIN_VARIABLES.values(), "slots", "require", *COMPONENTS)


class Settings(NamedTuple):
    """The settings in force.

    Attributes:
        enabled: The whole host.
        components: Switch per component, see :data:`crewai_native._types.COMPONENTS`.
        slots: Chosen provider per slot: a distribution's name, or ``stock``.
        plugins: Allow-list of distributions; None allows all.
        deny: Distributions never used.
        trust: ``all``, ``listed`` (only distributions named in ``plugins``, ``slots`` or the lock
            file) or ``locked`` (only what the lock file pins, bit for bit).
        lock: The lock file.
        strict: A slot that should be bound and is not is an error.
        verify: Share of the calls of stateless slots that run through CrewAI's code too, 0 to 1.
        probe_timeout: Seconds that the first import of a plug-in may take.
        require: Features that a provider must have, per slot.
        cache_dir: Where verdicts on plug-ins and fingerprints of CrewAI's code are kept.
        metrics: File to which each process adds its metrics as it exits; None keeps none.
        options: Further settings per component, for the plug-ins to check.
        sources: Where each setting that is not a default came from.
    """

    enabled: bool = True
    components: Mapping[str, bool] = _EMPTY
    slots: Mapping[str, str] = _EMPTY
    plugins: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()
    trust: str = "all"
    lock: Path = Path(LOCK_FILE)
    strict: bool = False
    verify: float = 0.0
    probe_timeout: float = 20.0
    require: Mapping[str, frozenset[str]] = _EMPTY
    cache_dir: Path | None = None
    metrics: Path | None = None
    options: Mapping[str, Mapping[str, Any]] = _EMPTY
    sources: Mapping[str, str] = _EMPTY

    def source(self, setting: str) -> str:
        """Return where a setting came from, for messages."""
        return self.sources.get(setting, "default")

    def switched_off(self, slot: str) -> str | None:
        """Return the setting that turns a slot off, or None."""
        component = component_of(slot)
        if not self.components.get(component, True):
            return f"{component} is off ({self.source(component)})"
        if self.slots.get(slot) == STOCK:
            return f"slot set to stock ({self.source(f'slots.{slot}')})"
        return None

    def override(self, slots: Mapping[str, str]) -> Settings:
        """Return the same settings with other providers chosen for some slots."""
        chosen = {
            check_slot(slot, "slots (code)"): _provider(provider, slot, "code")
            for slot, provider in _mapping(slots, "slots (code)").items()
        }
        sources = {f"slots.{slot}": "code" for slot in chosen}
        return self._replace(
            slots={**self.slots, **chosen},
            components={
                # A slot chosen in code is wanted, whatever a broader switch says.
                **self.components,
                **{component_of(slot): True for slot, p in chosen.items() if p != STOCK},
            },
            sources={**self.sources, **sources},
        )


def component_of(slot: str) -> str:
    """Return the component whose switch covers a slot."""
    return _AREA_COMPONENT[slot.partition(".")[0]]


def normalise(distribution: str) -> str:
    """Return a distribution's name in its canonical spelling (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).strip().lower()


def check_slot(name: str, setting: str) -> str:
    """Return the name of a slot if there is one, or say what would be accepted."""
    if name not in SLOT_NAMES:
        raise ConfigurationError(
            f"{setting}: there is no slot {name!r}{_suggest(name, SLOT_NAMES)}; "
            f"slots: {', '.join(SLOT_NAMES)}"
        )
    return name


def load(
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the settings.

    Args:
        environ: Environment variables; the process's own if None.
        directory: Where the search for the nearest ``pyproject.toml`` starts; the working
            directory if None.
        overrides: Settings given in code, with the keys of ``[tool.crewai-native]``.

    Raises:
        ConfigurationError: A setting means nothing.
    """
    reader = _Reader()
    found = _nearest_pyproject(directory)
    if found is not None:
        path, table = found
        reader.table({"lock": LOCK_FILE, **table}, f"[tool.crewai-native] in {path}", path.parent)
    reader.environment(os.environ if environ is None else environ)
    reader.table(overrides or {}, "code")
    return reader.settings()


def _nearest_pyproject(directory: Path | None) -> tuple[Path, Mapping[str, Any]] | None:
    try:
        start = Path.cwd() if directory is None else directory.resolve()
    except FileNotFoundError:
        return None  # the working directory was removed
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            # Somebody else's folder above ours: no reason to stop a program, but to say so.
            _logger.warning("settings in it are not in force: %s", error)
            continue
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from error
        # Most projects' files say nothing of us: those are neither parsed nor complained about.
        if not _MENTIONED.search(text):
            return None
        try:
            tool = _mapping(tomllib.loads(text.decode()).get("tool", {}), f"[tool] in {path}")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
        for name in tool:
            if name != "crewai-native" and normalise(name) == "crewai-native":
                raise ConfigurationError(
                    f"[tool.{name}] in {path} is read by nobody; settings are in [tool.crewai-native]"
                )
        table = tool.get("crewai-native", {})
        return path, _mapping(table, f"[tool.crewai-native] in {path}")
    return None


class _Reader:
    """Collects settings from one source after the other, the later one winning."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._components: dict[str, bool] = {}
        self._slots: dict[str, str] = {}
        self._require: dict[str, frozenset[str]] = {}
        self._options: dict[str, dict[str, Any]] = {}
        self._sources: dict[str, str] = {}

    def settings(self) -> Settings:
        return Settings(
            **self._values,
            components=self._components,
            slots=self._slots,
            require=self._require,
            options=self._options,
            sources=self._sources,
        )

    def environment(self, environ: Mapping[str, str]) -> None:
        for variable in sorted(environ):
            if variable != "CREWAI_NATIVE" and not variable.startswith("CREWAI_NATIVE_"):
                continue
            self._variable(variable, environ[variable])

    def _variable(self, variable: str, value: str) -> None:
        if setting := _PLAIN_VARIABLES.get(variable):
            self._plain(setting, value, variable)
            return
        rest = variable.removeprefix("CREWAI_NATIVE_").lower()
        if rest in COMPONENTS:
            self._component(rest, value, variable)
            return
        if rest.startswith("slot_"):
            slots = {slot.replace(".", "_"): slot for slot in SLOT_NAMES}
            if rest.removeprefix("slot_") not in slots:
                names = ", ".join(f"CREWAI_NATIVE_SLOT_{s.upper()}" for s in slots)
                raise ConfigurationError(f"{variable} names no slot; there are: {names}")
            self._slot(slots[rest.removeprefix("slot_")], value, variable)
            return
        component, _, option = rest.partition("_")
        if component in COMPONENTS and option:
            self._option(component, option, value, variable)
            return
        known = [*_PLAIN_VARIABLES, *(f"CREWAI_NATIVE_{c.upper()}" for c in COMPONENTS)]
        raise ConfigurationError(
            f"{variable} is not a setting{_suggest(variable, known)}; there are: "
            f"{', '.join(known)}, CREWAI_NATIVE_SLOT_<SLOT>, CREWAI_NATIVE_<COMPONENT>_<OPTION>"
        )

    def table(self, table: Mapping[str, Any], source: str, base: Path = _HERE) -> None:
        for key, value in table.items():
            setting = f"{key} ({source})"
            if key == "slots":
                for slot, provider in _mapping(value, setting).items():
                    self._slot(check_slot(slot, setting), provider, source)
            elif key == "require":
                for slot, features in _mapping(value, setting).items():
                    self._require[check_slot(slot, setting)] = _names(features, setting)
                    self._sources[f"require.{slot}"] = source
            elif key in COMPONENTS:
                if isinstance(value, Mapping):
                    for option, content in value.items():
                        self._option(key, option, content, source)
                else:
                    self._component(key, value, source)
            elif key in _TABLE_KEYS:
                self._plain(key, value, source, base)
            else:
                raise ConfigurationError(
                    f"{setting} is not a setting{_suggest(key, _TABLE_KEYS)}; "
                    f"there are: {', '.join(_TABLE_KEYS)}"
                )

    def _plain(self, key: str, value: Any, source: str, base: Path = _HERE) -> None:
        setting = source if source.startswith("CREWAI_NATIVE") else f"{key} ({source})"
        if key in {"enabled", "strict"}:
            value = _switch(value, setting)
        elif key in {"plugins", "deny"}:
            value = frozenset(normalise(name) for name in _names(value, setting))
        elif key == "trust":
            if value not in TRUST_LEVELS:
                raise ConfigurationError(
                    f"{setting} is {value!r}; it accepts {', '.join(TRUST_LEVELS)}"
                )
        elif key == "verify":
            value = _number(value, setting, "a share of the calls, 0 to 1", 0.0, 1.0)
        elif key == "probe_timeout":
            value = _number(value, setting, "seconds, 0.1 to 3600", 0.1, 3600.0)
        else:
            value = base / check_path(value, setting)
        self._values[key] = value
        self._sources[key] = source

    def _component(self, component: str, value: Any, source: str) -> None:
        setting = source if source.startswith("CREWAI_NATIVE") else f"{component} ({source})"
        self._components[component] = _switch(value, setting, or_table=source != setting)
        self._sources[component] = source

    def _option(self, component: str, option: str, value: Any, source: str) -> None:
        if option == "enabled":
            self._component(component, value, source)
            return
        self._options.setdefault(component, {})[option] = value
        self._sources[f"{component}.{option}"] = source

    def _slot(self, slot: str, provider: Any, source: str) -> None:
        self._slots[slot] = _provider(provider, slot, source)
        self._sources[f"slots.{slot}"] = source


def _provider(value: Any, slot: str, source: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(
            f"provider of {slot} ({source}) is {value!r}; it accepts the name of an installed "
            f"distribution, or {STOCK!r}"
        )
    return normalise(value)


def check_path(value: Any, setting: str) -> Path:
    """Return the path that a setting names, or say what would be accepted."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ConfigurationError(f"{setting} is {value!r}; it accepts a path")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # the home directory of a user who is not there
        raise ConfigurationError(f"{setting} is {value!r}; it accepts a path: {error}") from error


def _switch(value: Any, setting: str, *, or_table: bool = False) -> bool:
    text = str(value).strip().lower() if isinstance(value, str | int) else None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    also = ", or a table of options" if or_table else ""
    raise ConfigurationError(
        f"{setting} is {value!r}; it accepts 1 or 0 (true/false, on/off){also}"
    )


def _number(value: Any, setting: str, accepts: str, low: float, high: float) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not low <= number <= high:
        raise ConfigurationError(f"{setting} is {value!r}; it accepts {accepts}")
    return number


def _names(value: Any, setting: str) -> frozenset[str]:
    if isinstance(value, str):
        names = frozenset(name.strip() for name in value.split(",") if name.strip())
        if not names:  # a variable that came out empty would turn everything off, unseen
            raise ConfigurationError(
                f"{setting} is {value!r}; it accepts names, with commas between"
            )
        return names
    if isinstance(value, list | tuple | set | frozenset) and all(
        isinstance(name, str) for name in value
    ):
        return frozenset(value)
    raise ConfigurationError(f"{setting} is {value!r}; it accepts a list of names")


def _mapping(value: Any, setting: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{setting} is {value!r}; it accepts a table")
    return value


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
