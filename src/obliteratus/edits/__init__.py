"""EXCISE: plan an edit, carry it out in memory, prove it, and make matched controls."""
