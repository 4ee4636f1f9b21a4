"""The sections of `benchmarks.planner`, one file each, and what they share."""
