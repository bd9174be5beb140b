"""Measures of safety and usefulness over a policy's answers."""
