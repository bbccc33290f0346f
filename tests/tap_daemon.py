"""The ingest endpoint as a real HTTP server in a thread, for tests of what taps send."""

import json
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Daemon:
    """Keeps what arrives, answers what it is told to (202 by default)."""

    def __init__(self, address, *, unix=False, answers=(), delay=0.0):
        self.messages, self.headers, self.answers, self.delay = [], [], list(answers), delay
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(daemon.delay)
                status = daemon.answers.pop(0) if daemon.answers else 202
                if status == 202:
                    daemon.messages += [json.loads(line) for line in body.splitlines()]
                    daemon.headers.append(dict(self.headers))
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0.1")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

            def address_string(self):
                return "client"

        class UnixServer(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self.server = UnixServer(address, Handler) if unix else ThreadingHTTPServer(address, Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def of(self, kind):
        return [message for message in self.messages if message["kind"] == kind]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def wait(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
