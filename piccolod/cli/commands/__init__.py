"""The commands, a file a group. A file is imported only when one of its commands is asked for."""
