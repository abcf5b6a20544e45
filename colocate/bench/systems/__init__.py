"""Servers that a sweep starts and stops: ours, and any other by its command line."""
