"""A TCP proxy between a station and its broker: it delays, throttles, swallows and cuts."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Final

_CHUNK: Final = 4096


class TcpProxy:
    """Passes connections on to a port on loopback, as well or as badly as its attributes say.

    `delay_s` holds every chunk back, `bytes_per_s` limits each direction, `swallowing` keeps connections open and passes
    nothing on, and `cut_after` breaks a connection in the middle of a packet once so many bytes went to the broker.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.swallowing = False
        self.cut_after: int | None = None
        self.cuts = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target_port))
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._pairs.append((client, server))
                for source, sink, to_broker in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=(source, sink, to_broker), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, to_broker: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                while self.swallowing:
                    time.sleep(0.01)
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.bytes_per_s is not None:
                    time.sleep(len(data) / self.bytes_per_s)
                limit = self.cut_after
                if to_broker and limit is not None and passed + len(data) > limit:
                    self.cut_after = None
                    self.cuts += 1
                    sink.sendall(data[: max(0, limit - passed)])
                    break
                sink.sendall(data)
                passed += len(data)
        self._close(source, sink)

    def _close(self, *ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            self._close(*pair)

    def close(self) -> None:
        """End; connections are broken."""
        self._listener.close()
        self.cut()
