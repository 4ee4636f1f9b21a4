"""Programs that measure the package on real models; each module with a `main` runs as `python -m benchmarks.<name>`."""
