"""Load on a real shard: simulated televisions, overload, outages, kills. `python -m bench.shard_load`."""
