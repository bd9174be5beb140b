"""Models: loading, heads, names, export, and the tiny one."""
