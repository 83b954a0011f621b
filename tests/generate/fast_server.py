"""
A server of its own process that answers each chat completion after a fixed time, and costs next to nothing.

    python -m tests.generate.fast_server 0.5      # says {"base_url": ...}; ends with its standard input
"""

import asyncio
import json
import sys
from pathlib import Path

REPLY = {
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "moo " * 40}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60},
}
WHOLE = json.dumps(REPLY).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(WHOLE)


class Counts:
    """What the server saw, over all connections."""

    calls = running = most_running = connections = 0


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, for bodies with a Content-Length, one request at a time."""

    def __init__(self, seconds: float, counts: Counts) -> None:
        self._seconds, self._counts, self._seen = seconds, counts, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._counts.connections += 1

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, gap, body = self._seen.partition(b"\r\n\r\n")
        if not gap:
            return
        if head.startswith(b"GET"):
            counts = {name: getattr(self._counts, name) for name in ("calls", "most_running", "connections")}
            self._write(json.dumps(counts).encode())
            return
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(body) >= length:
            self._seen = b""
            self._counts.calls += 1
            self._counts.running += 1
            self._counts.most_running = max(self._counts.most_running, self._counts.running)
            asyncio.get_running_loop().call_later(self._seconds, self._answer)

    def _answer(self) -> None:
        self._counts.running -= 1
        if not self._transport.is_closing():
            self._transport.write(HEAD + WHOLE)

    def _write(self, body: bytes) -> None:
        self._seen = b""
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def serve(seconds: float) -> None:
    loop, counts = asyncio.get_running_loop(), Counts()
    server = await loop.create_server(lambda: Connection(seconds, counts), "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"base_url": f"http://127.0.0.1:{port}/v1"}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    asyncio.run(serve(float(sys.argv[1])))
