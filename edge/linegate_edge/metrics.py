"""What Prometheus scrapes: one registry a station.

Rules kept here: names carry their unit; a label has few values, never a serial. `edge/README.md` lists every metric, and
a test holds it to that.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The station's metrics; every method of prometheus_client may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.triggers = Counter(
            "linegate_triggers", "Parts that began: triggers, and frames that came of themselves", registry=self.registry
        )
        self.parts = Counter("linegate_parts", "Parts by verdict", ["decision"], registry=self.registry)
        self.undecided = Counter("linegate_undecided", "Undecided parts by reason", ["reason"], registry=self.registry)
        self.repeats = Counter("linegate_repeats", "Parts that had their verdict already", registry=self.registry)
        self.parts_in_hand = Gauge("linegate_parts_in_hand", "Parts without a verdict yet", registry=self.registry)
        self.late_frames = Counter(
            "linegate_late_frames", "Frames that came or were judged after the verdict", ["camera"], registry=self.registry
        )
        self.stage_seconds = Histogram(
            "linegate_stage_seconds", "Time by stage", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self.published = Counter("linegate_published", "Verdicts acknowledged by the broker", registry=self.registry)
        self.broker_connections = Counter(
            "linegate_broker_connections", "Connections made to the broker", registry=self.registry
        )
        self.broker_connected = Gauge("linegate_broker_connected", "1 while the broker is connected", registry=self.registry)
        self.unconfirmed = Gauge(
            "linegate_unconfirmed", "Verdicts that the broker has and the MES has not confirmed", registry=self.registry
        )
        self.commands = Counter(
            "linegate_commands", "Commands answered, by reason", ["command", "reason"], registry=self.registry
        )
        self.no_subscriber = Gauge("linegate_no_subscriber", "1 while nobody subscribes to verdicts", registry=self.registry)
        self.outbox_pending = Gauge(
            "linegate_outbox_pending", "Verdicts stored and not yet acknowledged", registry=self.registry
        )
        self.queue_frames = Gauge("linegate_queue_frames", "Frames that wait for a worker", registry=self.registry)
        self.source_up = Gauge(
            "linegate_source_up", "1 while the camera delivers, 0 while it is missing", ["camera"], registry=self.registry
        )
        self.frames_skipped = Counter(
            "linegate_frames_skipped",
            "Frames of live cameras left out to keep to max_frames_per_second",
            ["camera"],
            registry=self.registry,
        )
        self.line_stop = Gauge("linegate_line_stop", "1 while the line must stop", registry=self.registry)
        self.plc_up = Gauge("linegate_plc_up", "1 while the PLC answers", registry=self.registry)
        self.triggers_missed = Counter(
            "linegate_triggers_missed", "Triggers that the PLC skipped between two polls", registry=self.registry
        )
        self.evidence_bytes = Counter("linegate_evidence_bytes", "Evidence written, in bytes", registry=self.registry)
        self.evidence_failures = Counter(
            "linegate_evidence_failures", "Evidence that could not be written", registry=self.registry
        )
        self.disk_free_bytes = Gauge("linegate_disk_free_bytes", "Free space of the store's disk", registry=self.registry)
        self.package_info = Gauge(
            "linegate_package_info",
            "1 for the package in service",
            ["name", "version", "digest", "provider"],
            registry=self.registry,
        )

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def mean_stage_seconds(self, stage: str) -> float:
        """Return the mean time of a stage since the start, or NaN where it never ran."""
        labels = {"stage": stage}
        count = self.registry.get_sample_value("linegate_stage_seconds_count", labels) or 0.0
        total = self.registry.get_sample_value("linegate_stage_seconds_sum", labels) or 0.0
        return total / count if count else float("nan")
