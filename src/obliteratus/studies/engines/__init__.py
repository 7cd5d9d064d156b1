"""The engines, one file each; a file registers its engine by name."""
