"""What a cluster answers when it does not do as it is asked, in words that say what to do.

Knows Ray's errors; asks nothing itself: jobs.py does.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError, IchRayError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ich_ray.cluster.access import Access

__all__ = ["UnknownJob", "Unreachable", "remote_line", "translate_errors"]


class Unreachable(ConfigError):
    """No cluster answers at an address; it may be on its way."""


class UnknownJob(ConfigError):
    """The cluster that answers has no record of a job."""


@contextmanager
def translate_errors(access: Access, job: str | None = None) -> Iterator[None]:
    """Translate Ray's errors: a wrong or missing token, an address without a cluster."""
    from ray.exceptions import AuthenticationError

    if job == "":
        raise ConfigError("job: an id must be given, got an empty one; `ich-ray jobs` lists them")
    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(f"{access}: {_token_problem(access, str(error))}") from None
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"{access}: the dashboard of a Ray cluster must answer there, got {remote_line(error)}; "
            "check that the cluster is up and that `ray dashboard cluster.yaml`, the tunnel to it, is open"
        ) from None
    except RuntimeError as error:
        if job and ("status code 404" in str(error) or "does not exist" in str(error)):
            raise UnknownJob(f"job {job}: must be known at {access.url}, got none; `ich-ray jobs` lists them") from None
        raise IchRayError(f"{access}: a Ray cluster must do as it is asked, got {remote_line(error)}") from None


def _token_problem(access: Access, said: str) -> str:
    remedy = "copy the cluster's token into ~/.ray/auth_token and `chmod 600` it"
    if access.token:
        return f"must be shown the cluster's token, got another one from {access.token.source}; {remedy}"
    if "Invalid" in said:
        return f"must be shown the cluster's token, got a wrong one; {remedy}"
    return f"must be shown the cluster's token, got none (RAY_AUTH_TOKEN, ~/.ray/auth_token); {remedy}"


def remote_line(error: Exception) -> str:
    """What an error of a remote machine says, in a line that has an end."""
    return first_line(error)[:300]
