"""The writer of checkpoints: one snapshot at a time of a run, stored in order by a thread.

A snapshot is taken where CrewAI takes it, before the handler of the event returns: a flow waits for
that, and must not move on first. Handlers that wait for one another share the next snapshot. What
follows, packing and syncing, happens on a thread that lives as long as there is something to
store, and that the end of the kickoff waits for. Where the disk is slower than the run, snapshots
that wait for it are stored together.
"""

from __future__ import annotations

import contextvars
import dataclasses
import logging
import os
import threading
import time
import uuid
import weakref
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from crewai.events.event_bus import _runtime_scope_depth, crewai_event_bus
from crewai.events.types.checkpoint_events import (
    CheckpointCompletedEvent,
    CheckpointFailedEvent,
    CheckpointPrunedEvent,
    CheckpointStartedEvent,
)
from crewai.state.provider.json_provider import JsonProvider

# A flow's checkpoint names the class that keeps its states, which CrewAI finds once it is loaded.
from crewai_native_db import _native, persistence  # noqa: F401
from crewai_native_db.checkpoints import assembly, outline, places
from crewai_native_db.checkpoints.placeholders import restore_guardrails

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native.slots.checkpoint_writer import Checkpoint
    from crewai_native_db.checkpoints.recorder import Part, Snapshot

_logger = logging.getLogger("crewai_native")
# Snapshots that wait to be stored, for each run. A disk that is slower than the run slows it down.
_BACKLOG: Final = 16
# Stores that stay open, those last used. A program may have a location for each of its runs.
_OPEN: Final = 16
# Text before a segment that the store may pack it with, in bytes.
_TAIL: Final = 1 << 16

_live: weakref.WeakSet[CheckpointWriter] = weakref.WeakSet()


@dataclasses.dataclass(eq=False)
class _Due:
    """A checkpoint that is due."""

    state: Any
    config: Any
    place: places.Place
    trigger: str | None
    context: dict[str, Any]
    parent_id: str | None
    branch: str
    begun: float
    # CrewAI's events are emitted as by the handler, wherever that happens.
    within: contextvars.Context
    checkpoint_id: str = ""
    location: str | None = None
    error: Exception | None = None
    done: bool = False

    @property
    def provider(self) -> str:
        return type(self.config.provider).__name__

    def emit(self, kind: type, parent_id: str | None, location: str, **fields: Any) -> None:
        if not threading.main_thread().is_alive():
            return  # the program has ended: CrewAI's event bus takes nothing any more
        event = kind(
            location=location,
            provider=self.provider,
            trigger=self.trigger,
            branch=self.branch,
            parent_id=parent_id,
            **self.context,
            **fields,
        )
        # Of one that the program asked for, CrewAI says that it is the state's.
        source = self.config if self.trigger is not None else self.state
        self.within.run(crewai_event_bus.emit, source, event)


@dataclasses.dataclass(eq=False)
class _Trail:
    """How far the store at a place has what a run has come to."""

    place: places.Place
    store: _native.CheckpointStore
    position: tuple[int, int] | None = None
    segments: list[bytes] | None = None
    count: int = 0
    parts: dict[int, Part] = dataclasses.field(default_factory=dict)


# A snapshot, and the checkpoints of it.
_Moment: TypeAlias = "tuple[Snapshot, list[_Due]]"


class _Run:
    """What is known of a run whose checkpoints are written."""

    def __init__(self) -> None:
        # It needs much that only runs with checkpoints need.
        from crewai_native_db.checkpoints.recorder import Recorder

        self.recorder = Recorder()
        self.summaries = outline.Summaries()
        self.changed = threading.Condition()
        # Checkpoints for which no snapshot was begun, and whether one is being taken.
        self.waiting: list[_Due] = []
        self.recording = False
        # Snapshots that are not stored, and whether there is a thread that does.
        self.taken: deque[_Moment] = deque()
        self.storing = False
        self.trails: dict[Path, _Trail] = {}
        # The checkpoint that the next one comes after: of those begun, of those stored.
        self.newest: str | None = None
        self.stored: str | None = None
        self.failures: list[Exception] = []
        self.warned = False


def _settle(run: _Run) -> None:
    """Wait until nothing of a run is on its way."""
    with run.changed:
        run.changed.wait_for(lambda: not (run.waiting or run.recording or run.taken or run.storing))


class CheckpointWriter:
    """Serves ``checkpoint.writer``.

    Args:
        strict: Whether a kickoff of which a checkpoint failed raises why.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._lock = threading.Lock()
        self._runs: dict[int, tuple[weakref.ref[Any], _Run]] = {}
        self._stores: dict[Path, _native.CheckpointStore] = {}
        self._pruning: dict[Path, threading.Lock] = {}
        # Of checkpoints that were read and of which no state was made yet.
        self._guardrails: dict[str, dict[str, Any]] = {}
        self._counts = dict.fromkeys(
            ("written", "failed", "pruned", "snapshots", "snapshot_us", "store_us"), 0
        )
        _live.add(self)

    def statistics(self) -> dict[str, int]:
        """Checkpoints that were written, that failed, that were pruned; snapshots taken.

        ``snapshot_us`` and ``store_us`` are the processor time, in µs, that it took to take
        snapshots and to store them.
        """
        return dict(self._counts)

    def write(self, checkpoint: Checkpoint) -> None:
        """Take a snapshot of a run, and have a thread store it.

        Raises:
            Exception: No snapshot could be taken; or, outside of kickoffs, it could not be stored.
        """
        run, due = self._take(checkpoint)
        if _runtime_scope_depth.get() == 0:
            # No kickoff ends here that would wait for it.
            _settle(run)
            if due.error is not None:
                raise due.error

    def _take(self, checkpoint: Checkpoint) -> tuple[_Run, _Due]:
        state, config, event = checkpoint.state, checkpoint.config, checkpoint.event
        run = self._run(state)
        kind = places.Files if type(config.provider) is JsonProvider else places.Table
        names = ("task_id", "task_name", "agent_id", "agent_role")
        due = _Due(
            state=state,
            config=config,
            place=kind(config.location),
            trigger=None if event is None else event.type,
            context={name: None if event is None else getattr(event, name) for name in names},
            parent_id=_parent(run, state),
            branch=state._branch,  # noqa: SLF001 - as CrewAI does
            begun=time.perf_counter(),
            within=contextvars.copy_context(),
        )
        due.emit(CheckpointStartedEvent, due.parent_id, config.location)
        self._record(run, due)
        if due.error is not None:
            self._fail(run, due, due.error)
            raise due.error
        return run, due

    def save(self, checkpoint: Checkpoint) -> str:
        """Write a checkpoint that was asked for, and return where it is, once it is there.

        Raises:
            Exception: It could not be written.
        """
        run, due = self._take(checkpoint)
        with run.changed:
            run.changed.wait_for(lambda: due.location is not None or due.error is not None)
        if due.error is not None:
            raise due.error
        return str(due.location)

    def read(self, location: str, stock: Callable[[], str]) -> str:
        """Return a checkpoint as CrewAI would have written it.

        Raises:
            FileNotFoundError: What stands there is an outline without its data.
            DatabaseError: The data are damaged or of a newer format.
        """
        text = stock()
        found = outline.read(text)
        if found is None:
            return text
        data, checkpoint_id = found
        # A file, or a SQLite file and the id of a row.
        near = location if Path(location).is_file() else location.rsplit("#", 1)[0]
        path = Path(near).absolute().parent / data
        stored = assembly.load(self._store(path), checkpoint_id, location)
        if said := assembly.guardrails(stored):
            with self._lock:
                self._guardrails[location] = said
        return assembly.assemble(*stored)

    def restored(self, state: Any, location: str) -> None:
        """Give the tasks and agents of a restored state their guardrails that are functions.

        Raises:
            ValueError: One cannot be imported any more.
        """
        with self._lock:
            said = self._guardrails.pop(location, None)
        if said:
            restore_guardrails(state.root, said)

    def prune(self, location: str, _keep: int, branch: str, stock: Callable[[], int]) -> int:
        """Have CrewAI remove a branch's oldest checkpoints, and drop what they alone needed."""
        place = places.of(location)
        with self._lock:
            pruning = self._pruning.setdefault(place.store, threading.Lock())
        # CrewAI's way looks at each file that it has listed, and another run may remove it meanwhile.
        with pruning:
            before = place.ids(branch)
            try:
                removed = stock()
            except FileNotFoundError:
                # One of another process. It fails before it removes anything.
                removed = stock()
            gone = before - place.ids(branch)
            if gone:
                # Else a power cut could bring outlines back, and not their data.
                place.settle(branch)
                self._store(place.store).forget(sorted(gone))
        self._count("pruned", removed)
        return removed

    def drain(self, state: Any) -> None:
        """Wait until a run's checkpoints are stored.

        Raises:
            Exception: One failed, and the writer is strict.
        """
        with self._lock:
            _, run = self._runs.pop(id(state), (None, None))
        if run is None:
            return
        _settle(run)
        if self._strict and run.failures:
            raise run.failures[0]

    def _run(self, state: Any) -> _Run:
        key = id(state)
        with self._lock:
            known, run = self._runs.get(key, (None, None))
            if run is None or known is None or known() is not state:
                # A run that nobody drains, as that of an agent by itself, ends with its state.
                gone = weakref.ref(state, lambda _: self._runs.pop(key, None))
                run = _Run()
                run.newest = run.stored = state._parent_id  # noqa: SLF001 - as CrewAI does
                self._runs[key] = (gone, run)
        return run

    def _record(self, run: _Run, due: _Due) -> None:
        """Return when a snapshot that was begun after the call is taken, by whichever thread."""
        with run.changed:
            run.waiting.append(due)
            run.changed.wait_for(
                lambda: due.done or not (run.recording or len(run.taken) >= _BACKLOG)
            )
            if due.done:
                return
            batch, run.waiting = run.waiting, []
            run.recording = True
        snapshot, stores = None, False
        error: Exception | None = None
        begun = time.thread_time_ns()
        try:
            snapshot = run.recorder.snapshot(due.state)
        except BaseException as failure:
            # Raised by each of those who wait. What is no error, as Ctrl-C, is one to the others.
            if not isinstance(failure, Exception):
                error = RuntimeError(f"no snapshot was taken: {failure!r}")
                raise
            error = failure
        finally:
            with run.changed:
                run.recording = False
                for one in batch:
                    one.done, one.error = True, error
                if snapshot is not None:
                    self._count("snapshots")
                    self._count("snapshot_us", (time.thread_time_ns() - begun) // 1000)
                    stores = self._queue(run, snapshot, batch)
                run.changed.notify_all()
        if stores:
            self._store_all(run)

    def _queue(self, run: _Run, snapshot: Snapshot, batch: list[_Due]) -> bool:
        """Have a snapshot stored; return whether that is up to the caller."""
        for due in batch:
            due.checkpoint_id = _new_id()
            run.newest = due.checkpoint_id
        run.taken.append((snapshot, batch))
        if run.storing:
            return False
        run.storing = True
        # Not a daemon: the interpreter waits for it before it exits.
        thread = threading.Thread(
            target=self._store_all, args=(run,), name="crewai-native-checkpoints", daemon=False
        )
        try:
            thread.start()
        except RuntimeError:
            # The system has none left, or the program ends.
            return True
        return False

    def _store_all(self, run: _Run) -> None:
        while True:
            with run.changed:
                if not run.taken:
                    run.storing = False
                    run.changed.notify_all()
                    return
                moments = _together(run.taken)
                run.changed.notify_all()
            begun = time.thread_time_ns()
            by_place: dict[Path, list[_Moment]] = {}
            for snapshot, batch in moments:
                for due in batch:
                    there = by_place.setdefault(due.place.store, [])
                    if not there or there[-1][0] is not snapshot:
                        there.append((snapshot, []))
                    there[-1][1].append(due)
            for part in by_place.values():
                try:
                    self._store_some(run, part)
                except Exception as error:
                    # A listener of CrewAI's events, for one. Those who wait for the thread go on.
                    place = part[0][1][0].place
                    _logger.exception("after checkpoints were written at %s", place.store)
                    run.failures.append(error)
            self._count("store_us", (time.thread_time_ns() - begun) // 1000)

    def _store_some(self, run: _Run, moments: list[_Moment]) -> None:
        """Store checkpoints at one place, oldest first; no failure is raised."""
        dues = [due for _, batch in moments for due in batch]
        parent = run.stored
        said = {}
        for due in dues:
            said[due] = {"parent_id": parent, "branch": due.branch, "trigger": due.trigger}
            parent = due.checkpoint_id
        try:
            trail = self._trail(run, dues[0].place)
            outlines = _outlines(run, moments, said)
            failures = _extend(trail, moments, said, outlines)
        except Exception as error:  # noqa: BLE001 - told to everybody who can do something about it
            for due in dues:
                self._fail(run, due, error)
            return
        for snapshot, batch in moments:
            self._report(run, snapshot, batch[0])
        for index, due in enumerate(dues):
            failure = failures.get(due)
            if due not in failures:
                failure = _publish(due, said[due]["parent_id"], outlines[due])
            if failure is None:
                run.stored = due.checkpoint_id
                self._tell(run, due, said[due]["parent_id"])
                continue
            # Those after it say that they come after it: they are stored anew.
            later = dues[index + 1 :]
            trail.segments = None
            try:
                trail.store.forget([due.checkpoint_id for due in dues[index:]])
            except Exception:
                # A full disk, for one, has failed both. What no outline leads to is reclaimed later.
                _logger.exception("data of no checkpoint was left in %s", trail.store.path)
            self._fail(run, due, failure)
            if later:
                again = ((one, [due for due in batch if due in later]) for one, batch in moments)
                self._store_some(run, [moment for moment in again if moment[1]])
            return

    def _tell(self, run: _Run, due: _Due, parent_id: str | None) -> None:
        try:
            self._complete(run, due, parent_id)
        except Exception as error:
            # A listener of CrewAI's events, for one. What was stored with it is told of as well.
            _logger.exception("after checkpoint %s was written", due.checkpoint_id)
            run.failures.append(error)

    def _complete(self, run: _Run, due: _Due, parent_id: str | None) -> None:
        config = due.config
        location = due.place.name(config.location, due.checkpoint_id, parent_id, due.branch)
        due.state._chain_lineage(config.provider, location)  # noqa: SLF001 - as CrewAI does
        self._count("written")
        _logger.info("checkpoint saved; crewai checkpoint resume %s", due.checkpoint_id)
        try:
            due.emit(
                CheckpointCompletedEvent,
                parent_id,
                location,
                checkpoint_id=due.checkpoint_id,
                duration_ms=(time.perf_counter() - due.begun) * 1000.0,
            )
        finally:
            # Who asked for it goes on when everybody has been told, as with CrewAI.
            with run.changed:
                due.location = location
                run.changed.notify_all()
        if config.max_checkpoints is None:
            return
        try:
            removed = config.provider.prune(
                config.location, config.max_checkpoints, branch=due.branch
            )
        except Exception:  # the checkpoint itself is safe
            _logger.exception("checkpoints were not pruned at %s", config.location)
            return
        due.emit(
            CheckpointPrunedEvent,
            parent_id,
            config.location,
            removed_count=removed,
            max_checkpoints=config.max_checkpoints,
        )

    def _fail(self, run: _Run, due: _Due, error: Exception) -> None:
        self._count("failed")
        parent_id = due.parent_id
        # Without an id it is raised by the handler, and logged by who called it.
        if due.checkpoint_id:
            parent_id = run.stored
            _logger.error(
                "checkpoint %s was not written at %s",
                due.checkpoint_id,
                due.config.location,
                exc_info=error,
            )
        try:
            due.emit(CheckpointFailedEvent, parent_id, due.config.location, error=str(error))
        finally:
            # As with one that was written.
            with run.changed:
                run.failures.append(error)
                due.error = error
                run.changed.notify_all()

    def _report(self, run: _Run, snapshot: Snapshot, due: _Due) -> None:
        if snapshot.lost and not run.warned:
            run.warned = True
            _logger.warning(
                "checkpoints at %s have no value for %s, which cannot be imported: "
                "what is restored has to be given them again",
                due.config.location,
                ", ".join(sorted(snapshot.lost)),
            )

    def _trail(self, run: _Run, place: places.Place) -> _Trail:
        trail = run.trails.get(place.store)
        if trail is None:
            trail = run.trails[place.store] = _Trail(place, self._store(place.store))
            places.reclaim(place, trail.store)
        return trail

    def _store(self, path: Path) -> _native.CheckpointStore:
        with self._lock:
            store = self._stores.pop(path, None) or _native.CheckpointStore(path)
            self._stores[path] = store
            idle = [self._stores.pop(known) for known in list(self._stores)[:-_OPEN]]
        for one in idle:
            # A run that uses it still opens it again.
            one.close()
        return store

    def _count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self._counts[what] += by

    def _forget_parent(self) -> None:
        # In a forked child: the threads that held locks, and those that store, are not here.
        self._lock = threading.Lock()
        self._pruning = {}
        self._runs = {}


def _together(taken: deque[_Moment]) -> list[_Moment]:
    """Take the snapshots off that are to be stored at once: the first, and all that are like it."""
    moments = [taken.popleft()]
    # What is pruned after a checkpoint must not be one after it.
    while taken and _line(moments[-1]) == _line(taken[0]) is not None:
        moments.append(taken.popleft())
    return moments


def _line(moment: _Moment) -> tuple[int, Path, str] | None:
    """The record and the one branch of a snapshot's checkpoints, if nothing is pruned after them."""
    snapshot, batch = moment
    branches = {(id(snapshot.segments), due.place.store, due.branch) for due in batch}
    if len(branches) > 1 or any(due.config.max_checkpoints is not None for due in batch):
        return None
    return branches.pop()


def _publish(due: _Due, parent_id: str | None, text: str) -> Exception | None:
    """Put an outline where it is no file; return why it is not there."""
    try:
        due.place.publish(due.checkpoint_id, parent_id, due.branch, text)
    except Exception as error:  # noqa: BLE001 - told to everybody who can do something about it
        return error
    return None


def _outlines(run: _Run, moments: list[_Moment], said: dict[_Due, Any]) -> dict[_Due, str]:
    outlines = {}
    for snapshot, batch in moments:
        entities = run.summaries.of(snapshot)
        for due in batch:
            data = due.place.data(due.branch)
            outlines[due] = outline.write(snapshot, entities, due.checkpoint_id, data, said[due])
    return outlines


def _extend(
    trail: _Trail, moments: list[_Moment], said: dict[_Due, Any], outlines: dict[_Due, str]
) -> dict[_Due, Exception | None]:
    """Add to the store what snapshots have that it does not; then outlines that are files appear.

    Returns:
        Of those whose outlines are files, up to the first that failed: why it is not there, or None.
    """
    now = time.time_ns() // 1000
    files, drafted = [], []
    for due, text in outlines.items():
        file = due.place.file(due.checkpoint_id, said[due]["parent_id"], due.branch)
        if file is not None:
            files.append((*file, text))
            drafted.append(due)
    segments = moments[-1][0].segments
    if trail.segments is not segments:
        trail.position, trail.count, trail.parts = None, 0, {}

    def added(count: int, parts: dict[int, Part]) -> list[Any]:
        found = []
        for snapshot, batch in moments:
            entries = [(due.checkpoint_id, outline.compact(said[due]), now) for due in batch]
            news = _news(snapshot.parts, parts)
            found.append((segments[count : snapshot.count], news, entries))
            count, parts = snapshot.count, snapshot.parts
        return found

    tail = _tail(segments, trail.count)
    new = added(trail.count, trail.parts)
    stored = trail.store.add(trail.position, trail.count, tail, new, files)
    if stored is None:
        # The record was pruned away, or a fork of this process went on with it.
        stored = trail.store.add(None, 0, b"", added(0, {}), files)
    if stored is None:
        raise RuntimeError(f"a new record in {trail.store.path} was not added to")
    trail.position, failures = stored
    trail.segments, trail.count, trail.parts = segments, moments[-1][0].count, moments[-1][0].parts
    return dict(zip(drafted, failures, strict=False))


def _news(parts: dict[int, Part], known: dict[int, Part]) -> list[tuple[int, int, bytes]]:
    return [
        (number, part.like, part.text)
        for number, part in parts.items()
        if known.get(number) is not part
    ]


def _tail(segments: list[bytes], count: int) -> bytes:
    """The end of the text before a segment."""
    pieces, size = [], 0
    for text in reversed(segments[:count]):
        pieces.append(text)
        size += len(text)
        if size >= _TAIL:
            break
    return b"".join(reversed(pieces))


def _parent(run: _Run, state: Any) -> str | None:
    """The checkpoint after which the next one comes, be it not stored yet."""
    current: str | None = state._parent_id  # noqa: SLF001 - as CrewAI does
    with run.changed:
        if current != run.stored and not run.taken and not run.storing:
            # Somebody else has written one, or set the state back.
            run.newest = run.stored = current
        return run.newest


def _new_id() -> str:
    # CrewAI's form of it.
    return f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%S')}_{uuid.uuid4().hex[:8]}"


def _forget_parents() -> None:
    for writer in list(_live):
        writer._forget_parent()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)
