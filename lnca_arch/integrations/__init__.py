"""Where the networks meet other projects."""
