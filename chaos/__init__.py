"""The fault ledger: real processes, real faults, and a count of what they lost. `make chaos` runs it."""
