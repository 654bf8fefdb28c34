"""What can go wrong on the way to piccolod and back, as errors for people."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

from piccolod.cli.target import Target
from piccolod.errors import DeadlineExceeded, Forbidden, PiccoloError, Unavailable


@contextmanager
def said_well(target: Target) -> Iterator[None]:
    """Errors of sockets and of HTTP as errors for people."""
    try:
        yield
    except TimeoutError as error:
        raise _late(target) from error
    except http.client.HTTPException as error:
        if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
            raise _cut(target) from error
        raise garbage(f"{type(error).__name__}: {error}", target) from error
    except OSError as error:
        raise _unreachable(target, error) from error


def _unreachable(target: Target, error: OSError) -> PiccoloError:
    import ssl

    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
        return Unavailable(f"{target} does not speak TLS as we do: {error.reason or error}", hint="is it an http:// address?")
    if isinstance(error, ssl.SSLError):
        return Unavailable(
            f"cannot trust {target}: {error.reason or error}",
            hint="name the certificate authority of piccolod: SSL_CERT_FILE=ca.pem, and check the host name in the URL",
        )
    if target.url:
        reason = error.strerror or str(error)
        return Unavailable(f"cannot reach piccolod at {target}: {reason}", hint="check the URL, and that piccolod runs there")
    if isinstance(error, FileNotFoundError):
        return Unavailable(
            f"piccolod is not running here: there is no socket {target}",
            hint="start it with `systemctl start piccolod` or `make run`, or name its socket with --socket PATH",
        )
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(
            f"piccolod is not running: nobody listens on {target}",
            hint="start it with `systemctl start piccolod` or `make run`; `piccoloctl doctor` looks for the cause",
        )
    if isinstance(error, PermissionError):
        return Forbidden(f"no permission to use {target}", hint="run as root, or use --url with a token of `tokens create`")
    if isinstance(error, ConnectionError):
        return _cut(target)
    return Unavailable(f"cannot use {target}: {error.strerror or error}", hint="name the socket with --socket PATH")


def _cut(target: Target) -> Unavailable:
    return Unavailable(
        f"the connection to {target} was cut before the answer came: the outcome is not known",
        hint="look at `piccoloctl status` before you repeat it",
    )


def _late(target: Target) -> DeadlineExceeded:
    return DeadlineExceeded(f"{target} did not answer in time", hint="give it more with --timeout, or see `piccoloctl doctor`")


def garbage(what: str, target: Target | None = None) -> Unavailable:
    name = "the server" if target is None else str(target)
    return Unavailable(f"{name} answered, but not as piccolod does: {what}", hint="check --url or --socket")
