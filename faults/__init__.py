"""A campaign against the programs: kills at every write, damaged files, impossible settings, hostile surroundings."""
