"""From a run's tables to figures, findings and the page."""
