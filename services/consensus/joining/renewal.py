"""A certificate that takes the place of this node's former one."""

from __future__ import annotations

from typing import Final

from piccolod.cluster_mode import Mode
from piccolod.errors import Forbidden, StoreUnavailable
from piccolod.pki import authority
from services.consensus.joining.folder import Folder

_ANEW: Final = "its own is renewed by itself; where that fails, `piccoloctl nodes remove` the node and join it anew"


def keep(folder: Folder, certificate: str, mode: Mode) -> None:
    """Raises Forbidden for one that is not this node's, of its key and of its authority; StoreUnavailable."""
    try:
        former = authority.read(folder.certificate.read_text()).identity
        own_key, ca = folder.key.read_bytes(), folder.ca.read_text()
    except OSError as error:
        raise StoreUnavailable(f"cannot read {error.filename}: {error.strerror}", hint="see the disk") from error
    found = authority.read(certificate).identity
    if (found.cluster, found.node) != (mode.cluster, mode.node) or found != former:
        raise Forbidden(f"this certificate is {found.uri}, and this node is {former.uri}", hint=_ANEW)
    if not authority.belong_together(certificate, own_key):
        raise Forbidden("this certificate is for another key than this node has", hint=_ANEW)
    if not authority.signed_by(certificate, ca):
        raise Forbidden("this certificate is not signed by the authority of this cluster", hint=_ANEW)
    try:
        folder.renew_certificate(certificate)
    except OSError as error:
        raise StoreUnavailable(f"cannot keep the certificate: {error.strerror}", hint="see the disk") from error
