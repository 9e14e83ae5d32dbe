"""The benchmark: every contender side by side in one run, with ratios. `make bench` runs it."""
