"""The hub's side of devices: who they are, what they are to run, how new versions reach them, what they send back."""
