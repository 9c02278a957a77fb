"""Where the plug-in meets BasicSR."""
