"""``replay.store``: the outputs of a crew's tasks, kept for ``crewai replay``."""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from crewai_native.slots._base import Slot, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

_logger = logging.getLogger("crewai_native")
_bindings: Final = itertools.count(1)

PROTOCOL: Final = ("open",)
LOG_PROTOCOL: Final = ("add", "update", "load", "clear", "delete_all")


class ReplayLog(Protocol):
    """The log as one ``Crew`` object uses it. Every crew and every copy of one has its own.

    ``inputs`` and ``output`` are stored as ``json.dumps(…, cls=CrewJSONEncoder)`` would have them
    (``crewai/utilities/crew_json_encoder.py``); an output has the task's whole message history.
    Errors are raised as they are: a log keeps data, so CrewAI's own does not take over.
    """

    def add(
        self,
        *,
        task_id: str,
        task_key: str,
        expected_output: str,
        output: dict[str, Any],
        task_index: int,
        inputs: dict[str, Any],
        was_replayed: bool,
    ) -> None:
        """Add the output of a task, or replace that of the same ``task_id``."""

    def update(self, task_index: int, fields: Mapping[str, Any]) -> None:
        """Change fields (named as the arguments of :meth:`add`) of the task at an index.

        An index without a task is not an error; CrewAI logs a warning.
        """

    def load(self) -> list[dict[str, Any]]:
        """Return the tasks by index: the arguments of :meth:`add`, and ``timestamp``.

        The run of this log, or where it has none yet the newest run at the path, since
        ``crewai replay`` asks in a new process.
        """

    def clear(self) -> None:
        """Begin a new run: CrewAI calls it at each kickoff, for its one table per project.

        Other crews' runs are not this log's to delete.
        """

    def delete_all(self) -> None:
        """Delete every run at the path, whosever it is.

        The user asks for it, with ``crewai reset-memories`` or ``Crew.reset_memories``.
        """


class ReplayStore(Protocol):
    """Keeps replay logs.

    ``crewai log-tasks-outputs`` reads the table at ``path`` itself, in a process that does not
    import CrewAI. A store that wants it to work keeps the newest run there as well, written
    through Python's ``sqlite3``.
    """

    def open(self, path: str) -> ReplayLog:
        """Return the log for a crew that has just been made, before it runs, if it ever does.

        Called for every ``Crew`` and every copy of one: return a cheap handle on shared state.

        Args:
            path: The SQLite file that CrewAI's own store uses for this project. It is CrewAI's
                file, and need not exist.
        """


class ReplayStoreSlot(Slot):
    """Serves the log of every crew.

    A crew that exists already goes over with its next call; what it had logged before stays in
    CrewAI's file. After unbinding, crews go back to that file, and it is made where it was not.
    """

    name: ClassVar = "replay.store"
    summary: ClassVar = "task outputs for replay"
    how: ClassVar = (
        "KickoffTaskOutputsSQLiteStorage, TaskOutputStorageHandler.update,"
        " Crew._reset_memory_system"
    )
    keeps_data: ClassVar = True
    targets: ClassVar = (
        *(
            Target(
                "crewai.memory.storage.kickoff_task_outputs_storage:"
                f"KickoffTaskOutputsSQLiteStorage.{name}",
                wrapped=True,
            )
            for name in ("__init__", "_initialize_db", "add", "update", "load", "delete_all")
        ),
        Target(
            "crewai.utilities.task_output_storage_handler:TaskOutputStorageHandler.update",
            wrapped=True,
        ),
        Target("crewai.crew:Crew._reset_memory_system", wrapped=True),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider behind the methods of CrewAI's storage."""
        from crewai.crew import Crew
        from crewai.memory.storage.kickoff_task_outputs_storage import (
            KickoffTaskOutputsSQLiteStorage as Storage,
        )
        from crewai.utilities.task_output_storage_handler import TaskOutputStorageHandler

        store = provider.require(provider.call(), PROTOCOL, "a ReplayStore")
        logs = _Logs(binding, provider, store)
        binding.on_undo(logs.hand_back)
        for name, make in (
            ("_initialize_db", logs.make_initialize),
            ("add", logs.make_add),
            ("update", logs.make_update),
            ("load", logs.make_load),
            ("delete_all", logs.make_delete_all),
        ):
            binding.stand_in(Storage, name, make)

        def make_handler_update(stock: Any) -> Any:
            def update(handler: Any, task_index: int, log: dict[str, Any]) -> None:
                storage = handler.storage
                if type(storage) is not Storage:
                    stock(handler, task_index, log)
                elif log.get("was_replayed", False):
                    task = log["task"]
                    storage.update(
                        task_index,
                        task_id=str(task.id),
                        task_key=task.key,
                        expected_output=task.expected_output,
                        output=log["output"],
                        was_replayed=log["was_replayed"],
                        inputs=log["inputs"],
                    )
                else:
                    # CrewAI's own loads every row first, only to see that there is a table.
                    storage.add(**log)

            return update

        binding.stand_in(TaskOutputStorageHandler, "update", make_handler_update)

        def make_reset(stock: Any) -> Any:
            def reset(crew: Any, system: Any, name: str, reset_fn: Any) -> None:
                # Each kickoff and this end in the same method of the storage, for its one table.
                # Here all is to go, there only this crew's last run.
                if type(system) is TaskOutputStorageHandler and type(system.storage) is Storage:
                    reset_fn = logs.delete_all
                stock(crew, system, name, reset_fn)

            return reset

        binding.stand_in(Crew, "_reset_memory_system", make_reset)


class _Logs:
    """Each storage object's log, kept on the object itself."""

    def __init__(self, binding: Binding, provider: Provider, store: ReplayStore) -> None:
        self._binding = binding
        self._provider = provider
        self._store = store
        self._name = f"_crewai_native_{next(_bindings)}"
        self._lock = threading.Lock()
        self._without_table: weakref.WeakSet[Any] = weakref.WeakSet()
        self._initialize: Any = None

    def hand_back(self) -> None:
        """Give crews that outlive the binding the table that CrewAI's own code needs."""
        from crewai.utilities.errors import DatabaseOperationError

        for storage in list(self._without_table):
            try:
                self._initialize(storage)
            except DatabaseOperationError:
                _logger.warning("no replay log for a crew: %s", storage.db_path, exc_info=True)

    def make_initialize(self, stock: Any) -> Any:
        self._initialize = stock

        def initialize(storage: Any) -> None:
            self._without_table.add(storage)
            self._of(storage)

        return initialize

    def make_add(self, stock: Any) -> Any:  # noqa: ARG002 - the log takes it whole, as below
        def add(  # noqa: PLR0917 - CrewAI's signature
            storage: Any,
            task: Any,
            output: dict[str, Any],
            task_index: int,
            was_replayed: bool = False,
            inputs: dict[str, Any] | None = None,
        ) -> None:
            self._of(storage).add(
                task_id=str(task.id),
                task_key=task.key,
                expected_output=task.expected_output,
                output=output,
                task_index=task_index,
                inputs=inputs or {},
                was_replayed=was_replayed,
            )

        return add

    def make_update(self, stock: Any) -> Any:  # noqa: ARG002
        def update(storage: Any, task_index: int, **fields: Any) -> None:
            self._of(storage).update(task_index, fields)

        return update

    def make_load(self, stock: Any) -> Any:  # noqa: ARG002
        def load(storage: Any) -> list[dict[str, Any]]:
            return self._of(storage).load()

        return load

    def make_delete_all(self, stock: Any) -> Any:  # noqa: ARG002
        def delete_all(storage: Any) -> None:
            self._of(storage).clear()

        return delete_all

    def delete_all(self, handler: Any) -> None:
        self._of(handler.storage).delete_all()

    def _of(self, storage: Any) -> ReplayLog:
        log: ReplayLog | None = vars(storage).get(self._name)
        if log is not None:
            return log
        with self._lock:
            if self._name not in vars(storage):
                log = self._provider.require(
                    self._store.open(storage.db_path), LOG_PROTOCOL, "ReplayLogs from open()"
                )
                self._binding.meter_methods(type(log), LOG_PROTOCOL)
                setattr(storage, self._name, log)
            new: ReplayLog = vars(storage)[self._name]
            return new


SLOT: Final = ReplayStoreSlot()
