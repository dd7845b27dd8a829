"""Files of every format: found by their names, read as rows, written."""
