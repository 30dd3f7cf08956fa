"""Side-by-side ratios against peers. `python -m benchmarks` runs all and writes docs/benchmarks.md."""
