"""Settings → a finished run, by content."""
