"""Sensors: one file each, registered by entry point in the group `negawatt.sensors`."""
