"""The GRRO: pure mathematics, edits as data, the hook executor, and plans on disk."""
