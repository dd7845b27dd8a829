"""Jobs over files: rows in, one result for each row out, in the same order."""
