"""What the program needs of this machine, whether it is there, and what mends it."""
