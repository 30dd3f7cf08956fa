"""Adaptive Resonance Theory: categories that the states of a model are pulled to."""
