"""The connections of a server: its socket, HTTP/1.1, time limits of a peer, and how the process ends."""
