"""An MCP server over HTTP. It prints its port, and then a line for each session that opens or ends.

A port may be given, so that a server can come back where it was.
"""

import socket
import sys

import uvicorn
from mcp.server.fastmcp import FastMCP

server = FastMCP("tests")
calls = 0


@server.tool()
def which(text: str = "") -> str:
    """Count calls."""
    global calls  # noqa: PLW0603 - a server's state
    calls += 1
    return f"{calls} {text}".strip()


@server.tool()
def fails(text: str) -> str:
    """Fail."""
    raise ValueError(text)


@server.tool()
def refused() -> str:
    """Not come to: its calls are answered with a status."""
    return "came through"


def say(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


app = server.streamable_http_app()


async def watched(scope, receive, send):
    if scope["type"] == "http":
        known = b"mcp-session-id" in dict(scope["headers"])
        if scope["method"] == "POST" and not known:
            say("opened")
        if scope["method"] == "DELETE":
            say("ended")
        if scope["method"] == "POST":
            message = await receive()
            if b'"refused"' in message.get("body", b""):
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body"})
                return
            receive = after(message, receive)
    await app(scope, receive, send)


def after(first, receive):
    messages = [first]

    async def next_one():
        return messages.pop() if messages else await receive()

    return next_one


def main(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    say(listener.getsockname()[1])
    config = uvicorn.Config(watched, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
