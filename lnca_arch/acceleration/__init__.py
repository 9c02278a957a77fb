"""What makes a rollout faster, and changes nothing else."""
