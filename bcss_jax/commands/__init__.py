"""The commands: each module parses a command line and calls what the rest of the package offers."""
