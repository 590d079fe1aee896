"""A server of the OpenAI protocol that follows a script: right replies, and every way of being wrong."""

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["FaultyServer", dict[str, Any], str], tuple[int, bytes]]


def completion(content: Any, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).encode()


def verdict(code: str, **fields: Any) -> bytes:
    return completion(json.dumps({"code": code, "reason": "because", **fields}))


class FaultyServer:
    """Serves on a free port of this machine; `url` is its base_url, `seen` the requests so far."""

    def __init__(self, script: Script) -> None:
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append(body)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                code = re.findall(r'"code": "([0-9a-f]{16})"', body["messages"][-1]["content"])[-1]
                status, reply = script(outer, body, code)
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(reply)))
                    if 300 <= status < 400:
                        self.send_header("Location", outer.url + "/elsewhere")
                    self.end_headers()
                    self.wfile.write(reply)
                except OSError:
                    pass  # the client had enough

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "FaultyServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def slow(seconds: float) -> Script:
    def script(_: FaultyServer, __: dict[str, Any], code: str) -> tuple[int, bytes]:
        time.sleep(seconds)
        return 200, verdict(code, score=5)

    return script
