"""Measuring results against their truth: what is measured, on what, how, and how sure the numbers are."""
