"""Models: what each offers, and how global and local features come out of it."""
