"""Lightning callbacks of every run, and those that a config may add."""
