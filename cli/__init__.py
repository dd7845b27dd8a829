"""The command line: one file a command, which parses options and prints what the Python API did."""
