"""Built-in plugins, one file an architecture family; found through entry points like anyone else's."""
