"""The project's own performance comparisons, run by `make bench`. Medians of interleaved rounds; never a test."""
