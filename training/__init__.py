"""Trains the Pony, the tiny model in ``pony``: its world, its autoencoders, its text encoder and its transformers.

Nothing of the pack imports this package; it is here so that the Pony can be made again, and judged.
"""
