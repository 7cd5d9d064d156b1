"""Run records, what compares and exports them, and the leaderboard."""
