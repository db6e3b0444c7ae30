"""How good: errors, alarms against those asked for, drift, parent and child, what people say."""

from __future__ import annotations

from server.metrics.family import gauge, histogram, reading
from server.metrics.labels import CLASS, DETECTOR
from server.metrics.registry import Registered


class Quality(Registered):
    """Of what serves."""

    false_alarm_rate = reading(
        "prunewatch_false_alarm_rate", "Share of normal points that may be flagged, as asked for.", DETECTOR
    )
    alarm_flood = reading(
        "prunewatch_alarm_flood_ratio", "So many times that share is a flood (probation.alarm_flood).", DETECTOR
    )
    score = histogram(
        "prunewatch_score", "Scores of points, as they are written into the history.", DETECTOR, buckets="score"
    )
    error = reading(
        "prunewatch_held_out_error", "Error on held-out points when the bundle was made, scaled.", DETECTOR, CLASS
    )
    gate_value = reading(
        "prunewatch_gate_value",
        "What the gate measured of the served child beside its parent, by check.",
        *(DETECTOR, CLASS, "check"),
    )
    gate_limit = reading("prunewatch_gate_limit", "What it had to reach.", DETECTOR, CLASS, "check")
    drift = gauge(
        "prunewatch_drift",
        "How far errors and inputs are from what a detector was calibrated on, 0 to 1.",
        *(DETECTOR, "kind"),
    )
    drifting = reading("prunewatch_drifting", "1 where drift has come to stay.", DETECTOR, "kind")
    drift_since = reading(
        "prunewatch_drifting_since_timestamp_seconds", "Since when, as this process has seen it.", DETECTOR, "kind"
    )
    labels_kept = reading("prunewatch_labels", "Stretches that people have labelled.", DETECTOR, "label")
    judged = reading(
        "prunewatch_judged_anomalies",
        "Anomalies of the list that lie in labelled stretches, by label: the share of `anomaly` is the precision.",
        *(DETECTOR, "label"),
    )
