"""A folder as the broker."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from queue import Empty

import pytest
from kombu import Connection
from kombu.transport import filesystem

from crewai_native_celery.app import made
from crewai_native_celery.folder import Transport
from crewai_native_celery.options import read

MESSAGES = 500


@pytest.fixture
def connect(tmp_path):
    for name in ("queue", "taken"):
        (tmp_path / name).mkdir()

    def connect():
        options = {
            "data_folder_in": str(tmp_path / "queue"),
            "data_folder_out": str(tmp_path / "queue"),
            "control_folder": str(tmp_path / "control"),
            "processed_folder": str(tmp_path / "taken"),
            "store_processed": True,
        }
        return Connection("filesystem://", transport=Transport, transport_options=options)

    return connect


def test_who_looks_while_messages_are_written_gets_each_of_them_whole(connect):
    def write():
        with connect() as connection:
            channel = connection.default_channel
            for number in range(MESSAGES):
                channel._put("work", {"number": number, "text": "x" * 1000})

    taken = []
    thread = threading.Thread(target=write)
    with connect() as connection:
        channel = connection.default_channel
        thread.start()
        while len(taken) < MESSAGES:
            with contextlib.suppress(Empty):
                taken.append(channel._get("work")["number"])
    thread.join()
    assert sorted(taken) == list(range(MESSAGES))


@pytest.mark.parametrize("kind", ["ours", "kombu's"])
def test_no_message_is_seen_before_it_is_complete(connect, tmp_path, monkeypatch, kind):
    """What kombu's own does is what this one is for."""
    seen = []

    def look(*_):
        seen.extend(path.read_bytes() for path in (tmp_path / "queue").glob("*.msg"))

    stock = filesystem.dumps
    monkeypatch.setattr(filesystem, "dumps", lambda value: look() or stock(value))
    monkeypatch.setattr("crewai_native_celery.folder.dumps", lambda value: look() or stock(value))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda part, to: look() or replace(part, to))
    with connect() as connection:
        channel = connection.default_channel
        put = type(channel)._put if kind == "ours" else filesystem.Channel._put
        put(channel, "work", {"a": 1})
    look()
    messages = [json.loads(text) if text else None for text in seen]
    assert messages == ([{"a": 1}] if kind == "ours" else [None, {"a": 1}])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_processes_that_bind_at_once_know_of_all_queues(connect, tmp_path):
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            with connect() as connection:
                for n in range(20):
                    connection.default_channel._queue_bind("all", "", "", f"queue-{number}-{n}")
                    connection.default_channel.get_table("all")
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 6
    with connect() as connection:
        assert len(connection.default_channel.get_table("all")) == 120


def test_the_application_uses_it(tmp_path):
    options = read({"celery_broker": f"filesystem://{tmp_path}/broker"})
    with made(options).connection_for_write() as connection:
        assert isinstance(connection.transport, Transport)
        connection.default_channel._put("work", {"a": 1})
    (message,) = (tmp_path / "broker" / "queue").iterdir()
    assert json.loads(message.read_text()) == {"a": 1}
