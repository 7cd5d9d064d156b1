"""DISTILL: one file per extractor, and the selection that chooses among what they find."""
