"""The rows: ours beside public peers."""
