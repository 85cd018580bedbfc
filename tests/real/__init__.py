"""The parts of the end-to-end tests that nobody here wrote, and what starts them."""
