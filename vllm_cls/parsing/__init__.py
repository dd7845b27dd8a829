"""What people and files write, read: labels of a column, lists in an option, fields of JSON."""
