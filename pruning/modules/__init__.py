"""Modules of one's own: any that is made of layers whose units can be followed."""
