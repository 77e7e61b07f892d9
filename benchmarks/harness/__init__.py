"""What a benchmark row is, how it is measured, and the page."""
