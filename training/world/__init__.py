"""A world simple enough to measure: a shape that moves, or a face that says vowels, with the sound that belongs to it.

``scene`` says what a clip shows, ``draw`` makes its pictures, ``sound`` its waveform and ``prompts`` its text.
"""
