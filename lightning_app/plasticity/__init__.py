"""Neural plasticity: attention heads and neurons that are pruned and grow back."""
