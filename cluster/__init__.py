"""Connecting to Ray, placement and preflight; nothing here knows about learning."""
