"""What a client of prunewatch imports: the generated messages in `prunewatch.v1`, and `prunewatch.client`."""
