"""Defence: recipes that make refusal harder to remove, and the curve of what removing it costs."""
