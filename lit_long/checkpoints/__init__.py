"""The package's name in 0.1; until 0.3 `external` in it still works."""
