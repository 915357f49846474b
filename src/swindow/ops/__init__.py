"""Arithmetic: window attention and what it is made of."""
