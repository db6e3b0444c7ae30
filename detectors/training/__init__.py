"""How a detector is fitted, calibrated and exported. Needs torch; install `prunewatch[hub]`."""
