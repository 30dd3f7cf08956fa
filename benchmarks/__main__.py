"""Being written: __main__."""
