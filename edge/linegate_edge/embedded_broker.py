"""An MQTT 5 broker on loopback in a process of its own, for the demo and the benchmark; plants run their own.

Rules kept here: it listens on 127.0.0.1 alone; nothing of it survives its end. The only module that imports `iotcore`.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from linegate.errors import StationError

# rumqttd's settings; the sizes are bounds, not reservations.
_SETTINGS: Final = """
id = 0
[router]
id = 0
max_connections = 64
max_outgoing_packet_count = 2000
max_segment_size = 16777216
max_segment_count = 10
[v5.1]
name = "loopback"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = 1048576
max_inflight_count = 500
dynamic_filters = true
"""


@contextlib.contextmanager
def embedded_broker() -> Iterator[int]:
    """Run the broker and yield its port.

    Raises:
        StationError: the package that brings it is not installed, or it does not start.
    """
    try:
        from iotcore import Broker
    except ImportError as error:
        raise StationError("the embedded broker is not installed: pip install 'linegate[demo]'") from error
    with tempfile.TemporaryDirectory(prefix="linegate-broker-") as folder:
        port = _free_port()
        settings = Path(folder) / "broker.toml"
        settings.write_text(_SETTINGS.format(port=port))
        broker = Broker(config_path=str(settings))
        try:
            with _without_interrupt():
                broker.start()
        except (OSError, RuntimeError) as error:
            raise StationError(f"the embedded broker does not start on port {port}: {error}") from error
        try:
            yield port
        finally:
            broker.stop()


@contextlib.contextmanager
def _without_interrupt() -> Iterator[None]:
    """Let a child process that is started here not hear Ctrl-C, which a terminal sends to all: it must outlive the rest."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
