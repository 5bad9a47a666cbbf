"""The errors users meet. Each message is one line: what was got, what was wanted, where."""


class BitsFusionError(Exception):
    """Anything this package refuses or fails at."""


class InputError(BitsFusionError):
    """The user's mistake: a wrong path, option, recipe or weight. The command line exits with code 2."""


class ArtifactError(BitsFusionError):
    """A broken packed folder or a failed check; names the layer. The command line exits with code 1."""


def reason(error: BaseException) -> str:
    """What another library says went wrong, as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
