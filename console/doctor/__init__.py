"""`reservoir doctor`: looks at everything that an installation stands on, a line for each, with the mend."""
