"""The closed loop on simulated households: real brains, real sync, real shards, and what sharing is worth to a list."""
