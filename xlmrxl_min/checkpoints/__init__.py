"""Files <-> weights: reading every form of checkpoint, loading, saving, int8. See notebook 10."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; says which file, what is wrong, and what to do."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint, or it lacks a file; says where, and what there is instead."""
