"""How much comes, what becomes of it, and what is turned away."""

from __future__ import annotations

from server.metrics.family import counter, gauge, reading, single
from server.metrics.labels import DETECTOR
from server.metrics.registry import Registered


class Traffic(Registered):
    """Points, anomalies, series, back-pressure."""

    points = counter("prunewatch_points", "Points received, by what became of them.", DETECTOR, "status")
    anomalies = counter("prunewatch_anomalies", "Points at or above the threshold.", DETECTOR)
    anomalies_dropped = counter("prunewatch_anomalies_dropped", "Anomalies that could not be kept for later.", DETECTOR)
    history_dropped = counter(
        "prunewatch_history_dropped_points", "Points that could not be kept for training.", DETECTOR
    )
    watch_dropped = single("prunewatch_watch_dropped", "Anomalies not sent to slow Watch readers.")
    series = gauge("prunewatch_series", "Series with a state of their own.", DETECTOR)
    seated = gauge("prunewatch_series_in_memory", "Series whose state and ring are in memory.", DETECTOR)
    series_moves = counter(
        "prunewatch_series_moves",
        "Series that left memory for the disk (evicted) and came back (restored).",
        *(DETECTOR, "way"),
    )
    # Back-pressure
    calls = reading("prunewatch_calls", "Calls that run now and are answered once.")
    calls_limit = reading("prunewatch_calls_limit", "So many of them may run at once (max_calls).")
    streams = reading("prunewatch_streams", "Streams that are open now.")
    streams_limit = reading("prunewatch_streams_limit", "So many of them may be open at once (max_streams).")
    refused = single("prunewatch_refused", "Calls and streams that were refused because there were too many.")
    slow_readers = single("prunewatch_slow_readers", "Streams that were ended because nobody read their answers.")
    certificate_expiry = reading(
        "prunewatch_certificate_expiry_timestamp_seconds", "When the certificate of both addresses ends (tls)."
    )
    admin_refused = single("prunewatch_admin_refused", "Requests at the admin address without a token that may look.")
