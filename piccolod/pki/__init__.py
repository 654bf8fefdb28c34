"""Who is who between the nodes of a cluster: one authority, a certificate a node, tokens that let a new node in.

identity.py   what a certificate says of a node     authority.py  makes the authority, signs and checks certificates
channel.py    TLS 1.3 between nodes                 token.py      the text that a person carries to a new node
"""
