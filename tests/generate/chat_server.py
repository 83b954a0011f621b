"""
A chat completions endpoint in a thread, whose answers a test decides and whose requests it can count.

    with chat_server(lambda body: "moo") as server:
        ... ask server.base_url ...
        server.bodies                 # every request's body, in order of arrival, but for looks (`trials`)

An answer is a text, or an HTTP status.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.loopback import served

Answer = Callable[[dict], str | int]


@dataclass
class ChatServer:
    """What it answers, how long it takes, and what it was asked."""

    answer: Answer
    seconds: float = 0.0
    trial_answer: str | int = "Yes."
    base_url: str = ""
    bodies: list[dict] = field(default_factory=list)
    trials: int = 0

    def prompts(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def chat_server(answer: Answer, seconds: float = 0.0) -> Iterator[ChatServer]:
    """Run one until the block ends."""
    state = ChatServer(answer, seconds)
    with served(_Handler, state=state) as url:
        state.base_url = f"{url}/v1"
        yield state


class _Handler(BaseHTTPRequestHandler):
    state: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = self._trial(body) if body["max_tokens"] == 1 else self._answer(body)
        status = said if isinstance(said, int) else 200
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        reply = {"choices": [choice], "usage": usage} if status == 200 else {"error": "planned"}
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _trial(self, body: dict) -> str | int:
        """The look before the first call."""
        self.state.trials += 1
        return self.state.trial_answer

    def _answer(self, body: dict) -> str | int:
        self.state.bodies.append(body)
        time.sleep(self.state.seconds)
        return self.state.answer(body)

    def do_GET(self) -> None:
        data = json.dumps({"data": [{"id": "small"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""
