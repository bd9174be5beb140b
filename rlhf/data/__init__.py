"""Readers of the formats on disk, images, and the embedded tiny world."""
