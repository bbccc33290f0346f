"""An HTTP answer that ends. http.client's time limit starts anew with every byte, so a receiver that drips its headers, or
the lines between its chunks, could hold a delivery thread for hours; here the connection is cut after two time limits.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from typing import Any


class BoundedResponse(http.client.HTTPResponse):
    """A response whose connection is shut down two time limits after the answer was first waited for."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._late = threading.Event()
        limit = sock.gettimeout()
        self._timer = threading.Timer(2 * limit, _cut, (sock, self._late)) if limit else None

    def begin(self) -> None:
        """Read the status line and the headers. Raises TimeoutError when they take too long together."""
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        try:
            super().begin()
        except (OSError, http.client.HTTPException):
            self._cancel()
            if not self._late.is_set():
                raise
        if self._late.is_set():  # http.client takes the end of a cut connection for the end of the headers
            raise TimeoutError("the answer took too long")

    def close(self) -> None:
        """Close, and stop the watch on the time."""
        self._cancel()
        super().close()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _cut(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
