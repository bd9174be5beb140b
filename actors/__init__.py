"""Ray actors: thin classes that hold one `rlhf` object and forward a verb."""
