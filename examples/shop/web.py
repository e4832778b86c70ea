"""A small HTTP/1.1 server for the shop's services: routes, JSON, and an end on SIGTERM.

The services bind to loopback, as applications beside a proxy should: nobody reaches them but through it.
"""

import json
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Refused(Exception):
    """Ends a request with a status and a sentence."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def host(name):
    """The name of a service, or its address where the system does not let us have names (README, platform notes)."""
    try:
        socket.gethostbyname(name)
        return name
    except OSError:
        return os.environ.get(f"{name.upper()}_HOST", name)


def serve(name, port, routes):
    """Serves `routes`, a dict from (method, path) to a function of the request's JSON body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = f"shop-{name}"

        def answer(self):
            length = int(self.headers.get("content-length") or 0)
            text = self.rfile.read(min(length, 65536)) if length else b""
            handler = routes.get((self.command, self.path.split("?")[0]))
            try:
                if handler is None:
                    raise Refused(404, f"{name} has no {self.command} {self.path}")
                self.reply(200, handler(json.loads(text) if text else {}))
            except Refused as refused:
                self.reply(refused.status, {"error": str(refused)})
            except (ValueError, KeyError) as error:
                self.reply(400, {"error": f"bad request: {error!r}"})
            except OSError as error:
                self.reply(502, {"error": f"{name} could not reach what it needs: {error}"})

        do_GET = do_POST = answer

        def reply(self, status, body):
            html = isinstance(body, str)
            data = body.encode() if html else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8" if html else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass  # twenty lines a second would hide what matters

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    # shutdown() waits for the loop of serve_forever, so it must not run on the loop's own thread.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"{name} listens on 127.0.0.1:{port}")
    server.serve_forever()
    print(f"{name} ends")
    sys.exit(0)
