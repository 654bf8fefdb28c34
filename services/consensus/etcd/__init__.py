"""The only client of etcd. One noun a file; whoever uses it begins with `client.Client`.

Imported in a process that has been forked already, and only where there is an etcd to speak to: grpc cannot live through
a fork, and costs a process that is alone for nothing.
"""
