"""How big: networks, bundles, what is in memory and on disk."""

from __future__ import annotations

from server.metrics.family import gauge, reading
from server.metrics.labels import CLASS, DETECTOR
from server.metrics.registry import Registered


class Size(Registered):
    """Of what serves, and of its dense parent."""

    parameters = reading("prunewatch_parameters", "Parameters of the served network.", DETECTOR, CLASS)
    units = reading("prunewatch_units", "Hidden units of the served network.", DETECTOR, CLASS, "group")
    macs = reading("prunewatch_macs", "Multiply-accumulates of the served network for one point.", DETECTOR, CLASS)
    bundle_bytes = reading("prunewatch_bundle_bytes", "Bytes of a bundle's files on disk.", DETECTOR, CLASS, "kind")
    parent_parameters = reading(
        "prunewatch_parent_parameters", "Parameters of the dense parent of what serves.", DETECTOR, CLASS
    )
    parent_bytes = reading(
        "prunewatch_parent_step_bytes", "Bytes of its step graph, which would serve unpruned.", DETECTOR, CLASS
    )
    state_bytes = gauge("prunewatch_state_bytes", "Memory of all series' state and rings.", DETECTOR)
    state_limit = reading("prunewatch_state_limit_bytes", "What they may take (series_memory).", DETECTOR)
    history_points = reading("prunewatch_history_points", "Points kept for training, written or not.", DETECTOR)
    history_bytes = reading("prunewatch_history_bytes", "Bytes of the history on disk.", DETECTOR)
    store_free = reading("prunewatch_store_free_bytes", "Free bytes of the file system that holds the store.")
    store_size = reading("prunewatch_store_size_bytes", "All bytes of that file system.")
