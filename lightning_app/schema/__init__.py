"""The JSON schema of a run's YAML: made of the parser's types, and what a config has that is not in it."""
