"""Finished models: saved, handed on, exported."""
