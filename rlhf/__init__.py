"""The SafeVL library: maths, models, data, algorithms and evaluation. Works in one process, without a cluster."""
