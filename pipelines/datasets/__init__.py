"""Datasets: cut into checksummed shards, versioned in the store, staged on nodes, read, scrubbed and collected."""
