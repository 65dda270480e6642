"""The command line `calm`."""
