"""Being written: cuda."""
