"""Intervals, paired tests and nulls; every printed number is made here as an ``Estimate``."""
