"""The command `memory`: build, look into and edit the memory of a checkpoint."""
