"""Carries things out: a user's command under the meter, and a plan."""
