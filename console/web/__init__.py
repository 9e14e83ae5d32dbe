"""The operator's console: a web page beside the receiver, in a process of its own, never on the public port."""
