"""The admin listener: status, metrics and control for operators; must not serve clients."""
