"""Keeping what passes: the journal from the hot path, the process that reads it, and the stores."""
