"""What ``benchmarks/pareto.py`` is made of: rows, runs, the table and the picture."""
