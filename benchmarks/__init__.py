"""Benchmarks: one command per question, each with its peer measured in the same run; see RESULTS.md."""
