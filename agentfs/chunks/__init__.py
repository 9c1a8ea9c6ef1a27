"""Segments and the stores that keep them: one contract, several engines, and wrappers with the same contract."""
