"""What is expected of a candidate that was not timed."""
