"""Pictures: one look, and pictures as data that more than one library can draw."""
