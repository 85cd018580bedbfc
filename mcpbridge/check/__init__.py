"""What `mcpbridge check` finds out without starting anything."""
