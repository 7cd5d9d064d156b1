"""PROMPTS: contrast sets, the built-in pairs, loaders and splits."""
