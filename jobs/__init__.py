"""One runnable per job: read a configuration, wire objects, call a loop."""
