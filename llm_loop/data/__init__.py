"""What comes from outside: pinned assets, prompt sets, human ratings."""
