"""Everything that only makes rollouts faster."""
