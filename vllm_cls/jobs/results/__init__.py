"""What a row of results holds: of a text, of several heads, of questions."""
