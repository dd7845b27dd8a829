"""How fast a model runs here and beside other libraries, measured so that the numbers can be believed.

Every contender, ours included, lives in a process of its own with the same environment; they take turns on
the same texts, and their outputs are compared before any time counts.
"""
