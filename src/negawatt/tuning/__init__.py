"""Search over numbers, by ask and tell. Standard library only; runs nothing itself."""
