"""ANALYZE: one file per question about how a model refuses, each answered with its null."""
