"""Of the application's own tables."""
