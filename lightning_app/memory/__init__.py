"""An associative memory that a model reads, writes, deletes from and forgets."""
