"""Real reward servers on loopback for tests: the package's own, and one that answers as a test wishes."""

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from xomni_rl.rewards.base import FunctionReward
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.rewards.server import BackgroundServer
from xomni_rl.rewards.service import Service, local_scorers
from xomni_rl.rewards.wire import Limits


def serve(*functions: Callable[..., Any], token: str | None = None, port: int = 0, **limits: Any) -> BackgroundServer:
    parts = [Component(function.__name__, FunctionReward(function.__name__, function, {})) for function in functions]
    return BackgroundServer(Service(local_scorers(CompositeReward(parts)), Limits(**limits)), token, port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Scripted:
    """A server that answers GET /rewards as UniRL's does, and POST /score as a test wishes.

    Args:
        answer: body of a request → (status, headers, body), or None to hang up without a word.
        listed: body of the answer to GET /rewards.

    `requests`: bodies so far; `connections`: how many were opened; `busiest`: most requests under way at once.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes] | None],
        listed: bytes = b'{"rewards": ["brightness"]}',
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.connections = self.busy = self.busiest = 0
        self.lock = threading.Lock()
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay open

            def setup(self) -> None:
                with script.lock:
                    script.connections += 1
                super().setup()

            def do_GET(self) -> None:
                self.reply(200, {}, listed)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with script.lock:
                    script.requests.append(body)
                    script.busy += 1
                    script.busiest = max(script.busiest, script.busy)
                found = answer(body)
                with script.lock:
                    script.busy -= 1
                self.close_connection = found is None
                if found is not None:
                    self.reply(*found)

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def scores_of(body: dict[str, Any], score: Any = 0.5) -> bytes:
    count = len(body["requests"])
    return json.dumps({"results": [{"brightness": {"brightness": score}}] * count, "errors": [{}] * count}).encode()
