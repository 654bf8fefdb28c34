"""Every route of the API, one file a subject. A route that is not in this list does not exist."""

from __future__ import annotations

from typing import Any, Final

from services.api.routes import (
    apps,
    auth,
    cluster,
    crypto,
    docs,
    events,
    health,
    images,
    leadership,
    metrics,
    modules,
    secret,
    setting,
    status,
    store,
    token,
    traffic,
    volumes,
)

ROUTES: Final[tuple[Any, ...]] = (
    *health.ROUTES,
    *status.ROUTES,
    *apps.ROUTES,
    *images.ROUTES,
    *secret.ROUTES,
    *setting.ROUTES,
    *crypto.ROUTES,
    *auth.ROUTES,
    *token.ROUTES,
    *modules.ROUTES,
    *store.ROUTES,
    *leadership.ROUTES,
    *cluster.ROUTES,
    *traffic.ROUTES,
    *volumes.ROUTES,
    *events.ROUTES,
    *metrics.ROUTES,
    *docs.ROUTES,
)
