"""What all packages share and what is not of their field: errors, atomic files and safe reading of checkpoints."""
