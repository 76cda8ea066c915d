"""Runs → verdicts."""
