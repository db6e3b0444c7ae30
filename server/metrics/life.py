"""What changes: versions, cycles, operations, the schedule; and what failed to be written."""

from __future__ import annotations

from server.metrics.family import counter, gauge, histogram, reading
from server.metrics.labels import CLASS, DETECTOR
from server.metrics.registry import Registered


class Life(Registered):
    """Of detectors, of fits and cycles, of the process."""

    detector_info = reading(
        "prunewatch_detector_info",
        "1 for what a device class serves.",
        *(DETECTOR, CLASS, "version", "bundle", "network"),
    )
    state = reading("prunewatch_detector_state", "1 for the state that a detector is in.", DETECTOR, "state")
    unable = reading("prunewatch_detector_unable", "1 where a detector can not score.", DETECTOR)
    frozen = reading("prunewatch_detector_frozen", "1 where nothing begins by itself.", DETECTOR)
    versions = reading("prunewatch_versions", "Versions that are kept.", DETECTOR)
    version = reading("prunewatch_version", "Number of the version that serves.", DETECTOR, CLASS)
    version_created = reading(
        "prunewatch_version_created_timestamp_seconds", "When that version was made.", DETECTOR, CLASS
    )
    pinned = reading("prunewatch_pinned", "1 where that version is pinned.", DETECTOR, CLASS)
    swaps = counter("prunewatch_swaps", "Versions that took over from another under running streams.", DETECTOR)
    # Cycles
    cycles = counter("prunewatch_cycles", "Cycles that ended.", DETECTOR, CLASS, "trigger", "outcome")
    rejections = counter(
        "prunewatch_rejections",
        "Why candidates were rejected; a cycle may have several reasons.",
        *(DETECTOR, CLASS, "reason"),
    )
    adoptions = counter("prunewatch_adoptions", "Probations of adopted versions that ended.", DETECTOR, CLASS, "state")
    cycle_ended = reading(
        "prunewatch_cycle_ended_timestamp_seconds", "When a cycle last ended so.", DETECTOR, CLASS, "outcome"
    )
    fruitless = reading(
        "prunewatch_cycles_since_adoption",
        "Cycles that ended so since the last that adopted.",
        DETECTOR,
        CLASS,
        "outcome",
    )
    rolled_back = reading(
        "prunewatch_rolled_back_timestamp_seconds",
        "When a version was last rolled back for misbehaving.",
        DETECTOR,
        CLASS,
    )
    # The schedule: what alerts compare with
    interval_seconds = reading(
        "prunewatch_schedule_interval_seconds", "Period of the schedule, where it is a time.", DETECTOR, "what"
    )
    interval_points = reading(
        "prunewatch_schedule_interval_points", "The same, where it is a number of points.", DETECTOR, "what"
    )
    prune_progress = reading(
        "prunewatch_prune_progress_ratio", "Share of its period since the last cycle: at 1 one is due.", DETECTOR, CLASS
    )
    refit_progress = reading(
        "prunewatch_refit_progress_ratio", "Share of its period since the last fit: at 1 one is due.", DETECTOR
    )
    cool_down = reading(
        "prunewatch_cool_down_seconds", "At least so long between cycles that triggers begin.", DETECTOR
    )
    back_off = reading(
        "prunewatch_back_off_seconds", "At least so long after a roll-back nothing begins by itself.", DETECTOR
    )
    # The trainer
    operations = reading("prunewatch_operations", "Operations that wait or run now.", "kind", "state")
    operations_ended = counter("prunewatch_operations_ended", "Operations that ended, by how.", "kind", "state")
    operation_seconds = histogram(
        "prunewatch_operation_seconds", "Time of an operation, from its turn to its end.", "kind", buckets="long"
    )
    stage_seconds = counter(
        "prunewatch_stage_seconds", "Time that operations have spent in each stage.", DETECTOR, "stage"
    )
    trainers = reading("prunewatch_trainers_limit", "Operations that may run at once (trainers).")
    # What must survive
    history_written = reading(
        "prunewatch_history_written_timestamp_seconds", "When points were last made durable.", DETECTOR
    )
    flush_interval = reading(
        "prunewatch_history_flush_interval_seconds", "How often that happens where points come (history_flush_seconds)."
    )
    store_failures = counter(
        "prunewatch_store_failures", "Writes and reads of the store that failed and will be tried again.", "part"
    )
    build_info = gauge(
        "prunewatch_build_info", "1 for this program, and what it is.", "role", "version", "python", "onnxruntime"
    )
