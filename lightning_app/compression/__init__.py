"""A file as a short archive: what a model expects costs few bits."""
