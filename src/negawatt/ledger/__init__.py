"""Where joules are kept: one append-only SQLite file per user."""
