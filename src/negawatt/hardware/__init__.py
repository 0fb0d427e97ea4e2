"""Handles to the machine: who it is. Standard library only."""
