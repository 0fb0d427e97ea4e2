"""The joint plan over all levers and placements, on one workload."""
