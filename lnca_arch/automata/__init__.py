"""The rules as the papers define them."""
