"""What can go wrong, said in one line: where, what happened, what to do next. Each kind has its exit code."""

EXIT_YES, EXIT_NO, EXIT_USAGE, EXIT_INPUT, EXIT_MISSING, EXIT_BUG = 0, 1, 2, 3, 4, 70


LONGEST_QUOTE = 300


def shortened(text: str) -> str:
    """The text, cut where it is longer than a line can be: a damaged file's value may fill a screen.

    >>> shortened("a" * 10_000)[295:]
    'aaaaa... (10,000 characters)'
    """
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}... ({len(text):,} characters)"


class MobileExportError(Exception):
    """An error a user can act on. str() is "where: what; then", one line."""

    exit_code = EXIT_BUG

    def __init__(self, where: str, what: str, then: str) -> None:
        super().__init__(where, what, then)
        self.where, self.what, self.then = where, what, then

    def __str__(self) -> str:
        return " ".join(f"{shortened(self.where)}: {shortened(self.what)}; {self.then}".split())


class AnswerIsNo(MobileExportError):
    """The question was understood and the answer is no: parity failed, a limit was exceeded."""

    exit_code = EXIT_NO


class UsageError(MobileExportError):
    """The command line contradicts itself or names what does not exist."""

    exit_code = EXIT_USAGE


class InputError(MobileExportError):
    """A file, tensor or config the user gave cannot be used."""

    exit_code = EXIT_INPUT


class MissingTool(MobileExportError):
    """A package, binary or device this step needs is not there."""

    exit_code = EXIT_MISSING
