"""What a job says of itself: while it runs, at its end, in an HTML file."""
