"""From a name to a classifier in memory: the files, the head, the weights, the form in which it runs."""
