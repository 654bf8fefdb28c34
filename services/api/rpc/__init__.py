"""Calls between the nodes of a cluster, on a port of their own: TLS 1.3 with certificates on both sides (piccolod/pki).

service.py  the server and its upkeep, on members alone    app.py      its routes, bounds and refusals
client.py   one call to one node                           files.py    this node's certificate, taken up when renewed
join.py     POST /join: the one route without certificate  renewal.py  POST /renew, and this node's own renewal
relay.py    a write that is for the leader, sent there     replay.py   POST /forward: and answered there
unlocking.py  who restarts gets the key from its peers     standings.py  what each member has, for a recovery
places.py   where a node is found    pace.py  how often strangers may knock    wire.py  bodies, and errors, as JSON
"""
