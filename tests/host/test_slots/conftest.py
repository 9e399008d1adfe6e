"""Binds slots by hand, without discovery, and checks that undoing leaves CrewAI as it was."""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.version import Version

import crewai_native
from crewai_native import _targets, slots
from crewai_native._bind import Binding
from crewai_native._watch import Watch
from crewai_native.slots._base import Provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crewai_native.slots._base import Target

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # CrewAI's dependencies, while they are imported
    import crewai

_HOST = str(Path(crewai_native.__file__).parent)
_ABSENT = object()
NEWEST = Version("1.15.30")
"""The release that every slot is written for."""


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Importing CrewAI has activated the host for what is installed here.
    crewai_native.deactivate()
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "storage"))
    return tmp_path / "storage"


@pytest.fixture
def serve() -> Iterator[Callable[..., Binding]]:
    """Bind a hook to a slot until the test ends."""
    before: dict[str, Any] = {}
    bindings = []

    def serve(
        name: str,
        hook: Any,
        *,
        features: tuple[str, ...] = (),
        chosen: bool = False,
        verify: float = 0.0,
    ) -> Binding:
        slot = slots.load(name)
        check_targets(slot.targets)
        if not before:
            before.update(_targets_now())
        provider = Provider(name, "fake-dist", "1.2", frozenset(features), hook, chosen=chosen)
        binding = Binding(Watch(name, verify))
        try:
            slot.bind(binding, provider)
            for repair in slot.repairs:
                if repair.feature in features:
                    check_targets(repair.targets)
                    repair.bind(binding, provider)
        except BaseException:
            binding.undo()
            raise
        assert binding.in_force()
        bindings.append(binding)
        return binding

    yield serve
    for binding in reversed(bindings):
        binding.undo()
    after = _targets_now() if before else {}
    assert [path for path in before if after[path] is not before[path]] == []
    assert list(_ours_in_crewai()) == []


def check_targets(targets: tuple[Target, ...]) -> None:
    """Fail if a target is not as it was tested; on older releases skip, as the host would."""
    problems = _targets.problems(targets)
    if problems and Version(crewai.__version__) < NEWEST:
        pytest.skip("; ".join(problems))
    assert problems == []


@pytest.fixture(name="check_targets")
def check_targets_fixture() -> Callable[[tuple[Target, ...]], None]:
    return check_targets


def _targets_now() -> dict[str, Any]:
    """Return what stands at every target of every slot, raw."""
    found = {}
    for name in slots.SLOT_NAMES:
        slot = slots.load(name)
        repaired = (target for repair in slot.repairs for target in repair.targets)
        for target in (*slot.targets, *repaired):
            try:
                owner, attribute, _ = _targets.resolve(target.path)
            except (ImportError, AttributeError):
                continue  # an older release, where the slot is not bound
            found[target.path] = vars(owner).get(attribute, _ABSENT)
    return found


def _ours_in_crewai() -> Iterator[str]:
    """Find functions of the host that are still reachable by a name in CrewAI."""
    for module_name, module in sys.modules.copy().items():
        if module is None or module_name.partition(".")[0] not in {"crewai", "crewai_core"}:
            continue
        for name, value in vars(module).copy().items():
            if _is_ours(value):
                yield f"{module_name}.{name}"
            elif inspect.isclass(value) and value.__module__ == module_name:
                for attribute, entry in vars(value).copy().items():
                    if _is_ours(getattr(entry, "__func__", entry)):
                        yield f"{module_name}.{name}.{attribute}"


def _is_ours(value: Any) -> bool:
    code = getattr(value, "__code__", None)
    return inspect.isfunction(value) and code is not None and code.co_filename.startswith(_HOST)
