"""Gates of heads that are learned."""
