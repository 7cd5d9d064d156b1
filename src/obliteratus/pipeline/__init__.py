"""The stages in order, and the methods that fill in their settings."""
