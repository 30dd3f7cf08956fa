"""Being written: fit_overhead."""
