"""Errors that are the user's to mend: each names the field or file, what was found, what was expected, a way out."""


class HappyHorseError(ValueError):
    """Base of every error that this package raises on purpose; the command line prints it without a traceback."""


class InputError(HappyHorseError):
    """A prompt, picture, sound, size or option that can't be used."""


class CheckpointError(HappyHorseError):
    """A weights file or folder that is missing, damaged or of another model."""


class OutputError(HappyHorseError):
    """A result that can't be written where it was asked for."""
