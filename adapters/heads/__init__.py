"""Head sources: where the head of a classifier comes from, how it is calibrated, and the class that can hold it."""
