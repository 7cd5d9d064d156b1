"""VERIFY: two models measured by the same code, compared with intervals, tests and controls."""
