"""What a job keeps beside its output, so that the same command goes on after it ended early."""
