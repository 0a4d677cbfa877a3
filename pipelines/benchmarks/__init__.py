"""One pure module per tool, each found by its BENCHMARK. No benchmark imports another."""
