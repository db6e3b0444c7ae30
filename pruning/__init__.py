"""How a network becomes smaller and stays good. Knows no transport, no threads and no clock of its own."""
