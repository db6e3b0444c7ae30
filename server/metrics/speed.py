"""How fast: waiting, stepping, answering; what was measured, and what may be."""

from __future__ import annotations

from server.metrics.family import counter, histogram, reading
from server.metrics.labels import CLASS, DETECTOR
from server.metrics.registry import Registered

CALL = ("grpc_type", "grpc_service", "grpc_method")


class Speed(Registered):
    """Calls under the names that gRPC servers usually have, and what is prunewatch's own."""

    calls_started = counter("grpc_server_started", "Calls that came.", *CALL)
    calls_handled = counter("grpc_server_handled", "Calls that ended, by how.", *CALL, "grpc_code")
    call_seconds = histogram("grpc_server_handling_seconds", "Time of a call; of a stream, all of it.", *CALL)
    message_seconds = histogram(
        "prunewatch_message_seconds", "Time of one message of a scoring stream, from reading to its answer.", "method"
    )
    queue_seconds = histogram(
        "prunewatch_queue_seconds", "Time that points waited for the step that they shared with others.", DETECTOR
    )
    step_seconds = histogram("prunewatch_step_seconds", "Time of one step of a batch.", DETECTOR)
    live_step = reading(
        "prunewatch_live_step_seconds",
        "The newest 200 steps in use of at least half the budget's batch.",
        *(DETECTOR, CLASS, "quantile"),
    )
    measured = reading(
        "prunewatch_measured_step_seconds",
        "What a step of the served bundle took when measured.",
        *(DETECTOR, CLASS, "quantile"),
    )
    parent_measured = reading(
        "prunewatch_parent_step_seconds",
        "The same of the dense parent of the served bundle.",
        *(DETECTOR, CLASS, "quantile"),
    )
    budget = reading(
        "prunewatch_budget_seconds", "What a step may take on a device class.", DETECTOR, CLASS, "quantile"
    )
    budget_bytes = reading(
        "prunewatch_budget_bytes", "What the step graph may have on a device class.", DETECTOR, CLASS
    )
    headroom = reading(
        "prunewatch_headroom_ratio",
        "Share of a budget that the served bundle leaves, as measured: 0 is none, below 0 it is missed.",
        *(DETECTOR, CLASS, "limit"),
    )
