"""Parsers of user input: labels of a column, lists in an option, fields of JSON."""
