"""A run's directory: its files, its result, and the fingerprint of its settings."""
