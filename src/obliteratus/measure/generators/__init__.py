"""What lets a model answer: one file per generator, found by name."""
