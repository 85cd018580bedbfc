"""Third-party clients and servers for the end-to-end tests, and helpers to run them."""
