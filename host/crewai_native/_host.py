"""The host: negotiates each slot, binds the winners into CrewAI, and takes it all back.

There is one host per process, :data:`HOST`. Its public face is in :mod:`crewai_native`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from crewai_native import (
    _bind,
    _cache,
    _discovery,
    _fork,
    _otel,
    _probe,
    _settings,
    _targets,
    slots,
)
from crewai_native._bind import Binding
from crewai_native._errors import (
    ConfigurationError,
    CrewAINativeError,
    Declined,
    ProviderError,
    Shadowed,
    StrictError,
)
from crewai_native._negotiate import Screening
from crewai_native._plugins import Plugin, Plugins
from crewai_native._start import no_collection
from crewai_native._types import STOCK, State
from crewai_native._watch import Metrics, Watch
from crewai_native.slots._base import Provider

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from crewai_native._discovery import Offer
    from crewai_native._settings import Settings
    from crewai_native._status import SlotStatus, Status
    from crewai_native._types import Candidate
    from crewai_native.slots._base import Repair, Slot

_logger = logging.getLogger("crewai_native")

# States in which a candidate serves nothing, without the user having wanted that.
_PASSED_OVER: Final = frozenset(
    {State.BROKEN, State.TARGET_CHANGED, State.INCOMPATIBLE, State.UNTRUSTED, State.DECLINED}
)


class _NoCrewAIError(ConfigurationError):
    """There is no distribution of CrewAI here."""


class _Bound(NamedTuple):
    """A slot that is served: by whom, and how to take it back."""

    slot: Slot
    offer: Offer
    binding: Binding
    reason: str


class Host:
    """Wires plug-ins into CrewAI, slot by slot. Safe to use from several threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # everything below changes under it
        self._plugins = Plugins()
        self._settings: Settings | None = None
        self._overrides: list[Mapping[str, str]] = []
        self._bound: dict[str, _Bound] = {}
        self._offers: dict[str, list[Offer]] = {}
        self._strangers: list[Candidate] = []
        self._configured: dict[tuple[str, str], Plugin] = {}
        self._verdicts: dict[str, _probe.Verdict] = {}
        self._fingerprints = _targets.Fingerprints()
        self._crewai = ""
        self._rebinding = False
        self._thread = threading.local()
        self._reason = "not activated"
        self._warnings: list[str] = []

    # --- activation -----------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether the host is wired into CrewAI."""
        return self._settings is not None

    def activate(self, settings: Settings, reason: str) -> None:
        """Negotiate and bind every slot; change only what differs if already active.

        Raises:
            ConfigurationError: CrewAI is not installed, or a setting means nothing.
            StrictError: ``strict`` is set and a slot that should be bound is not.
        """
        if settings.enabled:
            # Not under the lock: another thread that is importing CrewAI right now holds its
            # import lock, and will want ours when the import hook activates the host.
            self._import_crewai()
        with self.lock:
            if self._settings == settings:
                return
            self._reset()
            if not settings.enabled:
                self._reason = f"switched off ({settings.source('enabled')})"
                return
            try:
                self._settings = settings
                self._reason = reason
                with no_collection():
                    self._discover()
                    remembered = _cache.file(settings, "fingerprints.json")
                    self._fingerprints = _targets.Fingerprints(remembered)
                    self._rebind(slots.SLOT_NAMES)
                    self._fingerprints.keep()
                self._check_strict()
            except BaseException as error:
                self._reset()
                self._reason = f"activation failed: {_one_line(error)}"
                raise
            _otel.export(self)
            if settings.metrics is not None:
                from crewai_native import _record

                _record.at_exit(self, settings.metrics)

    def activate_on_import(self) -> None:
        """Activate because a program has imported CrewAI.

        Settings that mean nothing, and ``strict``, are errors of that import: nobody may believe
        to run accelerated who does not. Anything else that goes wrong here is ours, is logged and
        shown by ``status``, and leaves the program on stock CrewAI.
        """
        if self.active or getattr(self._thread, "activating", False):
            return
        strict = False
        try:
            settings = _settings.load()
            strict = settings.strict
            self.activate(settings, "CrewAI was imported")
            self._log_passed_over()
        except _NoCrewAIError:
            if strict:
                raise
            # The program's own package of that name, or a CrewAI that was copied without metadata.
            with self.lock:
                self._reason = "a package crewai was imported, but no CrewAI is installed"
            _logger.info("not activated: %s", self._reason)
        except CrewAINativeError:
            raise
        except Exception:
            _logger.exception("crewai-native could not be activated; CrewAI runs as it is")

    def _log_passed_over(self) -> None:
        """Log who could serve and does not: a broken plug-in so that it is seen by default."""
        with self.lock:
            _logger.info("%d of %d slots are bound", len(self._bound), len(slots.SLOT_NAMES))
            told: dict[tuple[str, State, str], list[str]] = {}
            for offer in self.offers():
                one = offer.candidate
                if one.state in _PASSED_OVER:
                    told.setdefault((one.distribution, one.state, one.reason), []).append(one.slot)
        for (distribution, state, reason), names in told.items():
            _logger.log(
                logging.WARNING if state is State.BROKEN else logging.INFO,
                "crewai-native: %s does not serve %s; it is %s: %s",
                distribution,
                ", ".join(names),
                state,
                reason,
            )

    def deactivate(self) -> None:
        """Restore CrewAI exactly."""
        with self.lock:
            if self.active:
                self._reason = "deactivated"
            self._reset()

    @contextlib.contextmanager
    def using(self, chosen: Mapping[str, str]) -> Iterator[Status]:
        """Serve some slots by other providers for a block; process-wide.

        Args:
            chosen: Provider per slot: a distribution's name, or ``stock``.

        Raises:
            ConfigurationError: There is no such slot or provider.
        """
        was_active = self.active
        if not was_active:
            self.activate(_settings.load(), "using()")
        try:
            with self.lock:
                if self._settings is None:
                    raise ConfigurationError(f"using() needs an active host; {self._reason}")
                self._settings.override(chosen)  # checks the names before anything is changed
                self._overrides.append(chosen)
                self._rebind(chosen)
            yield self.status()
        finally:
            with self.lock:
                # An activation or deactivation in between has ended every block.
                if any(override is chosen for override in self._overrides):
                    self._overrides = [o for o in self._overrides if o is not chosen]
                    if was_active:
                        self._rebind(chosen)
            if not was_active:
                self.deactivate()

    def _import_crewai(self) -> None:
        self._crewai = _discovery.crewai_version()
        if not self._crewai:
            raise _NoCrewAIError("CrewAI is not installed; pip install crewai")
        self._thread.activating = True  # the import hook need not
        try:
            importlib.import_module("crewai")
        finally:
            self._thread.activating = False

    def _discover(self) -> None:
        self._offers, self._strangers = _discovery.offers()
        for stranger in self._strangers:
            self._warnings.append(
                f"{stranger.distribution} {stranger.version}: {stranger.slot}: {stranger.reason}"
            )
        assert self._settings is not None
        known = {offer.name for offer in self.offers()}
        for setting in ("plugins", "deny"):
            self._warnings += [
                f"{setting} ({self._settings.source(setting)}) names {name}, and no distribution "
                "of that name that offers a slot is installed"
                for name in sorted((getattr(self._settings, setting) or frozenset()) - known)
            ]

    def _reset(self) -> None:
        self._refuse_plugins()
        self._unbind(slots.SLOT_NAMES)
        configured = {plugin.value: plugin for plugin in self._configured.values()}
        self._configured.clear()
        for plugin in configured.values():
            try:
                plugin.call("crewai_native_unconfigure")
            except KeyboardInterrupt:
                raise
            except BaseException:
                _logger.exception("%s failed to unconfigure", plugin.distribution)
        self._settings = None
        self._overrides.clear()
        self._offers = {}
        self._strangers = []
        self._verdicts.clear()
        self._warnings.clear()

    def _refuse_plugins(self) -> None:
        """Refuse a change that a plug-in asks for while slots are being bound.

        Raises:
            ProviderError: One does; where it is called, that counts as its failure.
        """
        if self._rebinding:
            raise ProviderError("a plug-in cannot change the host by which it is being bound")

    # --- slots ----------------------------------------------------------------------------

    def _effective(self) -> Settings:
        assert self._settings is not None
        settings = self._settings
        for override in self._overrides:
            settings = settings.override(override)
        return settings

    def _rebind(self, slot_names: Collection[str]) -> None:
        """Negotiate slots afresh and bind the winners."""
        self._refuse_plugins()
        self._rebinding = True
        try:
            self._negotiate(slot_names)
        finally:
            self._rebinding = False

    def _negotiate(self, slot_names: Collection[str]) -> None:
        settings = self._effective()
        names = [name for name in slots.SLOT_NAMES if name in slot_names]
        self._unbind(names)
        screening = Screening(settings, self._crewai)
        eligible = {}
        for name in names:
            for offer in self._offers[name]:
                _forget(offer.candidate)
            eligible[name] = screening.eligible(name, self._offers[name])
            # From now on in the order in which they are considered.
            self._offers[name].sort(key=(eligible[name] + self._offers[name]).index)
        # One child process tries everybody's first choice; a later choice is rarely needed.
        self._try_first([ranked[0] for ranked in eligible.values() if ranked], settings)
        served = [slots.load(name) for name in names if eligible[name]]
        with _bind.one_look(_targets.functions(served)):
            for slot in served:
                self._serve(slot, eligible[slot.name], settings)
        self._check_options(settings)

    def _check_options(self, settings: Settings) -> None:
        """Refuse options of a component whose plug-ins take none: who takes some checks them.

        Raises:
            ConfigurationError: There are such options.
        """
        for component, options in settings.options.items():
            plugins = [p for (_, served), p in self._configured.items() if served == component]
            if plugins and not any("crewai_native_configure" in p.hooks for p in plugins):
                option = next(iter(options))
                names = ", ".join(sorted({plugin.distribution for plugin in plugins}))
                raise ConfigurationError(
                    f"{component}.{option} ({settings.source(f'{component}.{option}')}) is not an "
                    f"option; {component} has none where {names} serves it"
                )

    def _try_first(self, offers: list[Offer], settings: Settings) -> None:
        unseen = [offer for offer in offers if offer.value not in self._verdicts]
        if unseen:
            self._verdicts.update(_probe.verdicts(unseen, settings))

    def _serve(self, slot: Slot, ranked: list[Offer], settings: Settings) -> None:
        problems = _targets.problems(slot.targets, self._fingerprints)
        if problems:
            for offer in ranked:
                offer.candidate.failed("target", State.TARGET_CHANGED, "; ".join(problems))
            return
        for offer in ranked:
            offer.candidate.passed("target", f"{len(slot.targets)} targets are as they were tested")
        for offer in ranked:
            bound = self._bound.get(slot.name)
            if bound is None:
                provider = self._provider(slot, offer, settings)
                if provider is not None:
                    self._bind(slot, offer, provider, settings)
            elif slot.shared:
                provider = self._provider(slot, offer, settings)
                if provider is not None:
                    self._join(bound, offer, provider)
            else:
                offer.candidate.failed(
                    "bind",
                    State.SHADOWED,
                    f"by {bound.offer.candidate.distribution} ({bound.reason})",
                )

    def _provider(self, slot: Slot, offer: Offer, settings: Settings) -> Provider | None:
        """Load a candidate's plug-in and ask what it can do; None where it drops out."""
        candidate = offer.candidate
        self._try_first([offer], settings)
        verdict = self._verdicts[offer.value]
        if verdict.problem is not None:
            remembered = (
                "" if verdict.fresh else " (remembered; `crewai-native doctor` tries again)"
            )
            candidate.failed("first-import", State.BROKEN, verdict.problem + remembered)
            return None
        try:
            plugin = self._plugins.load(offer)
        except BaseException as error:  # noqa: BLE001 - _drop sorts out what must pass
            _drop(candidate, "first-import", error)
            return None
        candidate.passed("first-import", "tried now" if verdict.fresh else "remembered as sound")
        try:
            hook = plugin.hook(slot.hook)
            self._configure(plugin, _settings.component_of(slot.name), settings)
            candidate.features = _features(plugin, slot.name)
        except ConfigurationError:
            raise
        except BaseException as error:  # noqa: BLE001 - _drop sorts out what must pass
            _drop(candidate, "features", error)
            return None
        missing = settings.require.get(slot.name, frozenset()) - candidate.features
        if missing:
            candidate.failed(
                "features",
                State.INCOMPATIBLE,
                f"lacks {', '.join(sorted(missing))}, required by "
                f"{settings.source(f'require.{slot.name}')}; it has: "
                f"{', '.join(sorted(candidate.features)) or 'none'}",
            )
            return None
        candidate.passed("features", ", ".join(sorted(candidate.features)) or "none stated")
        return Provider(
            slot.name,
            candidate.distribution,
            candidate.version,
            candidate.features,
            hook,
            chosen=settings.slots.get(slot.name) == offer.name,
        )

    def _configure(self, plugin: Plugin, component: str, settings: Settings) -> None:
        if (plugin.value, component) not in self._configured:
            options = settings.options.get(component, {})
            plugin.call("crewai_native_configure", options=options)
            self._configured[plugin.value, component] = plugin

    def _bind(self, slot: Slot, offer: Offer, provider: Provider, settings: Settings) -> None:
        candidate = offer.candidate
        binding = Binding(Watch(slot.name, settings.verify))
        try:
            slot.bind(binding, provider)
            for repair in slot.repairs:
                self._repair(binding, repair, provider)
        except BaseException as error:  # noqa: BLE001 - _drop sorts out what must pass
            _take_back(binding)
            _drop(candidate, "bind", error)
            return
        rule = next(step.detail for step in candidate.steps if step.name == "order")
        candidate.passed("bind", slot.how)
        candidate.state = State.BOUND
        candidate.reason = rule
        self._bound[slot.name] = _Bound(slot, offer, binding, rule)

    def _join(self, bound: _Bound, offer: Offer, provider: Provider) -> None:
        try:
            bound.slot.join(bound.binding, provider)
        except BaseException as error:  # noqa: BLE001 - _drop sorts out what must pass
            _drop(offer.candidate, "bind", error)
            return
        offer.candidate.passed("bind", "beside the first, by name")
        offer.candidate.state = State.BOUND
        offer.candidate.reason = "available by name"

    def _repair(self, binding: Binding, repair: Repair, provider: Provider) -> None:
        if repair.feature not in provider.features:
            binding.notes.append(f"without repair {repair.name} (needs {repair.feature})")
            return
        fingerprints = self._fingerprints

        def bind() -> None:
            if problems := _targets.problems(repair.targets, fingerprints):
                binding.notes.append(f"without repair {repair.name} ({'; '.join(problems)})")
            elif error := binding.attempt(lambda part: repair.bind(part, provider)):
                _logger.error("repair %s could not be bound", repair.name, exc_info=error)
                binding.notes.append(f"without repair {repair.name} ({_one_line(error)})")

        for name in repair.imports:
            with contextlib.suppress(Exception):  # `bind` finds out what is not there
                importlib.import_module(name)
        binding.when_imported({target.module for target in repair.targets}, bind)

    def _unbind(self, names: Iterable[str]) -> None:
        wanted = set(names)
        for name in reversed([name for name in self._bound if name in wanted]):
            _take_back(self._bound.pop(name).binding)

    def _check_strict(self) -> None:
        settings = self._effective()
        if not settings.strict:
            return
        unbound = []
        for name, bound in self._bound.items():
            choice = settings.slots.get(name, bound.offer.name)
            for offer in self._offers[name]:
                if offer.name == choice != bound.offer.name:
                    source = settings.source(f"slots.{name}")
                    why = f"{offer.candidate.reason}; chosen by {source}"
                    unbound.append(f"{name} ({offer.candidate.distribution}: {why})")
        for name in self._offers.keys() - self._bound.keys():
            candidates = [offer.candidate for offer in self._offers[name]]
            # What the user turned off is not missed, unless the user requires it as well.
            wanted = [c for c in candidates if c.state is not State.DISABLED]
            if name in settings.require:
                reasons = [f"{c.distribution}: {c.reason}" for c in candidates]
                source = settings.source(f"require.{name}")
                why = "; ".join(reasons) or "no plug-in offers it"
                unbound.append(f"{name} ({why}; required by {source})")
            elif wanted:
                unbound.append(f"{name} ({wanted[0].distribution}: {wanted[0].reason})")
        if unbound:
            raise StrictError(
                f"strict ({settings.source('strict')}): not bound: {', '.join(sorted(unbound))}"
            )

    # --- watching -------------------------------------------------------------------------

    def status(self) -> Status:
        """Return the state of every slot and candidate."""
        with self.lock:
            # Here, not before: a fork waits for the lock, and would leave the child an import that
            # another thread has begun.
            from crewai_native._status import Status

            return Status(
                active=self.active,
                reason=self._reason,
                crewai=self._crewai or _discovery.crewai_version(),
                slots=[self._slot_status(name) for name in slots.SLOT_NAMES],
                strangers=[dataclasses.replace(stranger) for stranger in self._strangers],
                warnings=list(self._warnings),
            )

    def metrics(self) -> list[Metrics]:
        """Return what each bound slot has done."""
        with self.lock:
            watches = [bound.binding.watch for bound in self._bound.values()]
        return [watch.metrics() for watch in watches]

    def plugins(self) -> list[Plugin]:
        """Return the plug-ins that were loaded."""
        with self.lock:
            return list(self._plugins)

    def offers(self) -> list[Offer]:
        """Return every offer found at activation."""
        with self.lock:
            return [offer for ranked in self._offers.values() for offer in ranked]

    def _slot_status(self, name: str) -> SlotStatus:
        from crewai_native._status import SlotStatus

        slot = slots.load(name)
        candidates = [
            dataclasses.replace(offer.candidate, steps=list(offer.candidate.steps))
            for offer in self._offers.get(name, ())
        ]
        bound = self._bound.get(name)
        status = SlotStatus(
            slot=name,
            summary=slot.summary,
            state=State.STOCK,
            provider=STOCK,
            version=self._crewai or _discovery.crewai_version(),
            how="",
            reason=self._stock_reason(name, candidates),
            candidates=candidates,
        )
        if bound is None:
            return status
        bound.binding.settle()
        mine = next(c for c in candidates if c.distribution == bound.offer.candidate.distribution)
        if bound.binding.watch.reverted is not None:
            mine.state, mine.reason = State.BROKEN, f"reverted: {bound.binding.watch.reverted}"
        elif (wrappers := bound.binding.wrappers()) is None:
            mine.state, mine.reason = State.SHADOWED, "by other code, which replaced it since"
        else:
            status.state, status.provider = State.BOUND, mine.distribution
            status.version, status.how = mine.version, slot.how
            passed_over = [
                f"{candidate.distribution} is {candidate.state}: {candidate.reason}"
                for candidate in candidates
                if candidate.state in _PASSED_OVER
            ]
            notes = [*bound.binding.notes, *(f"under {wrapper}" for wrapper in wrappers)]
            mine.reason = "; ".join([bound.reason, *notes])
            status.reason = "; ".join([mine.reason, *passed_over])
            return status
        status.reason = mine.reason
        return status

    def _stock_reason(self, name: str, candidates: list[Candidate]) -> str:
        if not self.active:
            return self._reason
        off = self._effective().switched_off(name)
        if off is not None:
            return off
        if not candidates:
            return "no accelerator installed"
        first = candidates[0]
        return f"{first.distribution} is {first.state}: {first.reason}"


HOST: Final = Host()

# A thread that is busy with the host while another one forks would leave the child a lock that
# nobody ever releases.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=HOST.lock.acquire,
        after_in_parent=HOST.lock.release,
        after_in_child=HOST.lock.release,
    )
    os.register_at_fork(after_in_child=_fork.forget_cut_off_imports)


def _forget(candidate: Candidate) -> None:
    """Clear what an earlier negotiation left on a candidate, but for its discovery."""
    candidate.steps = [step for step in candidate.steps if step.name == "discover"]
    candidate.state, candidate.reason, candidate.features = State.SHADOWED, "", frozenset()


def _features(plugin: Plugin, slot: str) -> frozenset[str]:
    """Return what a plug-in says that it can do for a slot.

    Raises:
        ProviderError: Its hook gave something else.
    """
    said = plugin.call("crewai_native_features", {})
    features = said.get(slot, ()) if isinstance(said, Mapping) else None
    if isinstance(features, str) or not all(isinstance(f, str) for f in features or ()):
        features = None
    if features is None:
        raise ProviderError(
            f"{plugin.distribution} {plugin.version} returned {said!r} for "
            "crewai_native_features; the host accepts a mapping of slots to names of features"
        )
    return frozenset(features)


def _drop(candidate: Candidate, step: str, error: BaseException) -> None:
    """Leave a candidate in the state that an error of its plug-in puts it in.

    A ``SystemExit`` too, or a cancellation: nothing but the plug-in's own code, which only loads and
    is asked something here, can have raised it.

    Raises:
        KeyboardInterrupt: The error itself, which is the user's word to the whole program.
    """
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, Shadowed):
        candidate.failed(step, State.SHADOWED, str(error))
    elif isinstance(error, Declined):
        candidate.failed(step, State.DECLINED, str(error))
    else:
        _logger.debug("%s: %s failed", candidate.slot, candidate.entry_point, exc_info=error)
        candidate.failed(step, State.BROKEN, _one_line(error))


def _take_back(binding: Binding) -> None:
    """Undo a binding, whatever a plug-in makes of it."""
    try:
        binding.undo()
    except ExceptionGroup:
        _logger.exception("%s was not unbound cleanly", binding.watch.slot)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
