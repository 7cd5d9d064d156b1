"""Rules that tell whether an answer shows a behaviour: a prompt and an answer in, a verdict out."""
