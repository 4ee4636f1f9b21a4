"""The frontier benchmark: every way to save activation memory on the same models; run with `-m benchmarks.frontier`."""
