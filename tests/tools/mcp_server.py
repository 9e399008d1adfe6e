"""An MCP server on standard input and output, in plain Python: it starts at once.

It tells which process it is, and dies when asked to. Calls that wait do not hold up others.
"""

import json
import os
import pathlib
import sys
import threading
import time

TOOLS = ("which", "fails", "dies", "waits")
calls = 0


def answer(request_id, **outcome):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request_id, **outcome}) + "\n")
    sys.stdout.flush()


def tell(request_id, text, *, failed=False):
    content = [{"type": "text", "text": text}]
    answer(request_id, result={"content": content, "isError": failed})


def wait(request_id, file):
    pathlib.Path(f"{file}.{os.getpid()}").touch()
    while not pathlib.Path(file).exists():
        time.sleep(0.005)
    tell(request_id, str(os.getpid()))


def call(request_id, name, arguments):
    global calls  # noqa: PLW0603 - a server's state
    if name == "dies":
        os._exit(1)
    elif name == "waits":
        threading.Thread(target=wait, args=(request_id, arguments["file"])).start()
    elif name == "fails":
        tell(request_id, arguments["text"], failed=True)
    else:
        calls += 1
        tell(request_id, f"{os.getpid()} {calls}")


def main(log):
    with pathlib.Path(log).open("a") as started:
        started.write(f"{os.getpid()}\n")
    for line in sys.stdin:
        message = json.loads(line)
        request_id, parameters = message.get("id"), message.get("params", {})
        if message["method"] == "initialize":
            answer(
                request_id,
                result={
                    "protocolVersion": parameters["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "tests", "version": "1"},
                },
            )
        elif message["method"] == "ping" and "SILENT" not in os.environ:
            answer(request_id, result={})
        elif message["method"] == "tools/list":
            schema = {"type": "object", "properties": {}}
            tools = [
                {"name": name, "description": f"It {name}.", "inputSchema": schema}
                for name in TOOLS
            ]
            answer(request_id, result={"tools": tools})
        elif message["method"] == "tools/call":
            call(request_id, parameters["name"], parameters.get("arguments") or {})


if __name__ == "__main__":
    main(sys.argv[1])
