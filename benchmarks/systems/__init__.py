"""Other serving systems, started as their users start them, on the same machine and the same shapes."""
