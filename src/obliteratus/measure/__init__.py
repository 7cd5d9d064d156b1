"""MEASURE: what a model says and how likely it finds what it says, as numbers."""
