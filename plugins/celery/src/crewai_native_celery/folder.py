"""A folder as the broker: kombu's, whose messages are there as a whole or not at all.

kombu writes a message into the file under its final name, and a worker that looks meanwhile takes an
empty one: the message is gone, and the worker with it. The same goes for the file that says which
queues there are, while it is made.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ChannelError
from kombu.transport import filesystem
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterator


class Channel(filesystem.Channel):
    """Messages in files that appear when they are complete."""

    def get_table(self, exchange: str) -> Any:
        """Return the queues of an exchange."""
        with self._alone():
            return super().get_table(exchange)

    def _queue_bind(self, *args: Any) -> None:
        with self._alone():
            super()._queue_bind(*args)

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        # As kombu names them, whose reader takes the first by name, and none that ends otherwise.
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        message = Path(self.data_folder_out, name)
        incomplete = message.with_name(f"{name}.part")
        try:
            incomplete.write_bytes(str_to_bytes(dumps(payload)))
            incomplete.replace(message)
        except OSError as error:
            raise ChannelError(f"Cannot add file {str(message)!r} to directory") from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.control_folder.mkdir(exist_ok=True)
        with (self.control_folder / "lock").open("ab") as file:
            filesystem.lock(file, filesystem.LOCK_EX)
            try:
                yield
            finally:
                filesystem.unlock(file)


class Transport(filesystem.Transport):
    """What Celery's ``broker_transport`` names."""

    Channel = Channel
