"""The vector search beside its peers: same data, same run, one process for each, one thread."""
