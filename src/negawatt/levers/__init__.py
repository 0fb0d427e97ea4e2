"""Run-time levers of both phases, one file each. Each registers itself by entry point, as a plug-in would."""
