"""Option files: reading, schema and checks."""
