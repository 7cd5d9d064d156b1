"""Runs on another machine over SSH: the same program, the same events, results by hash."""
