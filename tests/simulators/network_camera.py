"""A network camera on loopback: an MJPEG stream over HTTP that can be unplugged and plugged in again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class NetworkCamera:
    """Streams what `next_jpeg` gives, at a rate, to whoever asks."""

    def __init__(self, next_jpeg: Callable[[], bytes], port: int, frames_per_second: float = 30.0) -> None:
        self.port, self._next_jpeg, self._period_s = port, next_jpeg, 1 / frames_per_second
        self._server: ThreadingHTTPServer | None = None
        self._unplugged = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/stream.mjpg"

    def plug_in(self) -> None:
        camera = self
        self._unplugged.clear()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    while not camera._unplugged.is_set():
                        jpeg = camera._next_jpeg()
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                        self.wfile.write(head.encode() + jpeg + b"\r\n")
                        time.sleep(camera._period_s)
                except OSError:
                    return

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def unplug(self) -> None:
        self._unplugged.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
