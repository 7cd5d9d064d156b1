"""The laboratory in a browser: it starts commands, shows their events and reads their results."""
