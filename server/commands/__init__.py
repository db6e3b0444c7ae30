"""The commands of `prunewatch`, one file a group. Heavy imports stand inside the bodies, so `--help` is instant."""
