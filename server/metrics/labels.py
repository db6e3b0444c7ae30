"""Names of labels.

Their values come from names of detectors (at most `max_detectors`), device classes of the settings, layers of a
network, and fixed lists: never from a series, a device or a caller.
"""

from __future__ import annotations

DETECTOR = "detector"
CLASS = "device_class"
