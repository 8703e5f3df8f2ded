"""Storage that fails for a moment is asked again: a shared folder, or an object store that throttles.

Knows errors and pauses, and no file. A disk that is full, and a file that is not there, are no such errors.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, TypeVar

from fsspec.exceptions import FSTimeoutError  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upath import UPath

__all__ = ["errors_behind", "is_of_storage", "retried"]

# After the first try, and each of the next but the last; s3fs and botocore have tried for some seconds before.
PAUSES_S: tuple[float, ...] = (0.5, 2.0, 5.0)
# The second line is of mounts whose server or daemon is gone, or whose ticket has expired.
_NUMBERS = {
    *(errno.ESTALE, errno.EIO, errno.ETIMEDOUT),
    *(errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO, errno.EKEYEXPIRED),
}
# Of S3, and of others by their HTTP status.
_BUSY = {
    *("SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"),
    *("RequestTimeout", "InternalError", "429", "500", "502", "503", "504"),
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}

Answer = TypeVar("Answer")


def retried(path: UPath, do: Callable[[], Answer]) -> Answer:
    """What `do` returns, tried again after each pause while its storage says that it cannot now.

    Args:
        path: what it reads or writes; credentials that have expired are read anew.
        do: leaves everything as it was where it fails.
    """
    for pause_s in PAUSES_S:
        try:
            return attempt(do)
        except Exception as error:
            if not is_of_storage(error):
                raise
            time.sleep(pause_s)
            if _EXPIRED & {*_codes(error)}:
                _sign_in_again(path)
    return attempt(do)


def attempt(do: Callable[[], Answer]) -> Answer:
    """One try; tests plant errors here."""
    return do()


def is_of_storage(error: BaseException) -> bool:
    """Whether an error is one that a storage may recover from, and no fault of who asked."""
    for one in errors_behind(error):
        if isinstance(one, FSTimeoutError) or (isinstance(one, OSError) and one.errno in _NUMBERS):
            return True
    return not (_BUSY | _EXPIRED).isdisjoint(_codes(error))


def errors_behind(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it: file systems and we ourselves translate."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        yield one
        seen.append(one)
        one = one.__cause__ or one.__context__


def _codes(error: BaseException) -> Iterator[str]:
    for one in errors_behind(error):
        response = getattr(one, "response", None)  # botocore's
        if isinstance(response, dict):
            yield str(response.get("Error", {}).get("Code"))
        for name in ("code", "status"):  # gcsfs, adlfs, aiohttp
            if isinstance(number := getattr(one, name, None), int | str):
                yield str(number)


def _sign_in_again(path: UPath) -> None:
    """Let s3fs read the credentials again; it keeps those that it was started with."""
    file_system = getattr(path, "fs", None)
    if "s3" in getattr(file_system, "protocol", ()):
        file_system.connect(refresh=True)  # type: ignore[union-attr]
