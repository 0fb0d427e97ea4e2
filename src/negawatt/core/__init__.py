"""The values and contracts that everything else is written in. Standard library only.

Read in this order: workload, reading, measurement, lever, trial, front, saving, placement, plan.
"""
