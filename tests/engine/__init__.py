"""A fake container engine: a CLI, and a daemon whose containers are plain processes."""
