"""Evaluation: from batches and variables to numbers, tables and pictures."""
