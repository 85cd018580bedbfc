"""A container engine in miniature: a CLI, and a daemon that starts what it calls containers."""
