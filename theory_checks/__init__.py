"""Claims behind ActiveDPO, measured."""
