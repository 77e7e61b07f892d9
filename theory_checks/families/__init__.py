"""One module per family of claims."""
