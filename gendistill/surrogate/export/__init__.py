"""Surrogate sets in formats of other tools, and on the Hub."""
