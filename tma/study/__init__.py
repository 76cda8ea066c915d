"""Runs → verdicts: what the chapters compare, with which intervals, and what follows."""

from tma.study.settings import StudyConfig, parameters

__all__ = ["StudyConfig", "parameters"]
