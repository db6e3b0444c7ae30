"""A load generator for a running service: `prunewatch bench`, and the same as a library for benchmarks.

`load` says what to send, `messages` makes the bytes, `run` has `callers` send them, `tally` counts what came back, and
`sweep` looks for the rate that is too much. Nothing here prints, and nothing knows a service from the inside.
"""
