"""Trains the embedded model; not part of the installed product. README.md has the commands."""
