"""Bringing the records of CrewAI's other stores here."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crewai_native_memory import location
from crewai_native_memory.progress import progress
from crewai_native_memory.sources import MoveError
from crewai_native_memory.storage import NativeStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crewai.memory.types import MemoryRecord

    from crewai_native_memory.sources import Source

_logger = logging.getLogger("crewai_native_memory")

# Stores of this process that need not be asked again whether something has to be imported.
_settled: set[str] = set()
# Stores of this process of which was told that they cannot be made.
_unwritable: set[str] = set()
_NAMED: Final = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What an import did.

    Attributes:
        source: Where the records came from.
        records: Records that the source holds.
        imported: Those that were not here yet.
        duplicates: Older rows of the source with the id of a newer one, left out.
        left: Ids of records that cannot be read and stay behind in the source, with the reasons.
        bare: Records that came without their vector, because it is none.
    """

    source: str
    records: int
    imported: int
    duplicates: int
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    bare: int = 0

    def __str__(self) -> str:
        """Return it in words."""
        text = f"imported {self.imported} of {self.records} records from {self.source}"
        if self.duplicates:
            text += f", leaving out {self.duplicates} older rows with the id of a newer one"
        if self.bare:
            text += f", {self.bare} of them without their vector, which is none"
        if self.left:
            named = [f"{id_!r} ({why})" for id_, why in itertools.islice(self.left.items(), _NAMED)]
            if len(self.left) > _NAMED:
                named.append(f"and {len(self.left) - _NAMED} more, which the log names")
            text += f"; {len(self.left)} cannot be read and stay behind there: {', '.join(named)}"
        return text


def bring(storage: NativeStorage, source: Source) -> Report:
    """Save the records of another store here, unless their ids are here already.

    Each batch is kept: a second call after an interruption brings what is missing. Records of a
    store that cannot be read stay behind there; the log and the report name them.

    Raises:
        MoveError: The source cannot be read, or a line of a file; or this store's embeddings have
            another length.
    """
    imported = 0
    with _reading(source):
        count, batches = source.open()
    with progress(f"Importing {source.name}", count) as advance:
        rest = iter(batches)
        while True:
            with _reading(source):
                batch = next(rest, None)
            if batch is None:
                break
            new = [record for record in batch if storage.get_record(record.id) is None]
            imported += _save(storage, new, source)
            advance(len(batch))
    return Report(source.name, count, imported, source.duplicates, source.left, source.bare)


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Name the source in whatever its library raises."""
    try:
        yield
    except MoveError:
        raise
    except Exception as error:
        raise MoveError(f"cannot read {source.name}: {error}") from error


def _save(storage: NativeStorage, records: list[MemoryRecord], source: Source) -> int:
    """Save the records that can be saved; give their number."""
    from crewai_native_memory.records import EmbeddingDimensionMismatchError

    try:
        storage.save(records)
    except EmbeddingDimensionMismatchError as error:
        raise MoveError(
            f"cannot bring {source.name} to {storage.path}: {error.new_dim}-dimensional vectors to "
            f"{error.stored_dim}-dimensional ones; choose another store, or embed one of the two "
            "anew with `crewai-native memory reembed`"
        ) from error
    except ValueError as error:
        if len(records) == 1:
            source.leave(records[0].id, error)
            return 0
        # Some hold what CrewAI writes and no text can, such as half a surrogate pair.
        return sum(_save(storage, [record], source) for record in records)
    return len(records)


def import_first(storage: NativeStorage, look: Callable[[], Source | None]) -> NativeStorage:
    """Have the records that a look finds elsewhere imported when the storage is first used.

    That happens once for a store, which remembers it, and only to one without records: its users
    would otherwise find some that they had not put there. Whoever uses the storage meanwhile
    waits.
    """
    if storage.path not in _settled:
        source = look()
        if source is not None and find_spec(source.library) is None:
            # CrewAI itself would go on without that store.
            _settled.add(storage.path)
            _logger.warning(
                "%s is not brought to %s, as %s is not installed; once it is, "
                "`crewai-native memory import` brings it",
                source.name,
                storage.path,
                source.library,
            )
        elif source is not None:
            storage.do_first(functools.partial(_import_once, storage.path, source))
    return storage


def must_stay(storage: NativeStorage, directory: Path, look: Callable[[], Source | None]) -> bool:
    """Whether what a look finds in a directory can be read there and nothing else.

    It cannot be brought here, where nothing can be written, either. As nobody can add to it, whoever
    reads it where it is begins no second history.
    """
    here = Path(storage.path)
    if here.exists() or location.is_writable(here.parent) or location.is_writable(directory):
        return False
    source = look()
    if source is not None and storage.path not in _unwritable:
        _unwritable.add(storage.path)
        _logger.warning(
            "%s cannot be made: CrewAI itself reads %s, where nothing can be written, either",
            storage.path,
            source.name,
        )
    return source is not None


def reset_with(storage: NativeStorage, look: Callable[[], Source | None]) -> NativeStorage:
    """Have a reset of the whole storage erase what its records were imported from, too.

    Who resets a memory wants all of it deleted, and CrewAI would have deleted what still lies there.

    Args:
        storage: The storage.
        look: Finds the store of CrewAI's own at the same place. Only if that is the one that the
            storage remembers is it erased.
    """
    storage.do_after_reset(functools.partial(_erase, storage.path, look))
    return storage


def _erase(path: str, look: Callable[[], Source | None]) -> None:
    storage = NativeStorage(path)
    note = storage.note("import")
    told = {} if note is None else json.loads(note)
    if told.get("state") != "done":
        return
    source = look()
    if source is None or source.name != told["source"]:
        return
    try:
        source.erase()
    except Exception as error:
        raise MoveError(
            f"{path} has been reset, but its records are still in {source.name}, which they were "
            f"imported from and which cannot be erased: {error}"
        ) from error
    # What CrewAI may put there later is none of ours.
    remember(storage, source, "erased")
    _logger.info("%s, from which %s had its records, is erased with it", source.name, path)


def _import_once(path: str, source: Source) -> None:
    from crewai_core.lock_store import lock

    storage = NativeStorage(path)
    if _is_due(storage):
        # Whoever waits needs the records, however long the import takes.
        with lock(f"crewai-native-import:{path}", timeout=24 * 3600):
            if _is_due(storage):
                remember(storage, source, "running")
                report = bring(storage, source)
                remember(storage, source, "done", left=len(report.left))
                level = logging.WARNING if report.left else logging.INFO
                _logger.log(level, "%s. %s stays as it is until all is reset", report, source.name)
    _settled.add(path)


def _is_due(storage: NativeStorage) -> bool:
    state = _state(storage)
    return state == "running" or (state is None and storage.count() == 0)


def _state(storage: NativeStorage) -> str | None:
    text = storage.note("import")
    return None if text is None else str(json.loads(text)["state"])


def remember(storage: NativeStorage, source: Source, state: str, left: int = 0) -> None:
    """Have a storage remember how far the import of a source is."""
    note = {"state": state, "source": source.name} | ({"left": left} if left else {})
    storage.set_note("import", json.dumps(note))
