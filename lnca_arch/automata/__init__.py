"""The update rules as the papers define them."""
