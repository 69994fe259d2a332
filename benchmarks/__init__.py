"""Benchmarks: one command per question; what a ratio compares is measured in the same run; see RESULTS.md."""
