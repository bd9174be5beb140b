"""Algorithms: one file each, configuration and objective together."""
