"""When and where work runs: placements, applied to trials already measured."""
